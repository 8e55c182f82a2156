"""The HTML, CSS and JavaScript of the report; filled in by page.py."""

# The policy makes it a fact, not a promise, that nothing is loaded from elsewhere.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>{header}</header>
<main>
{summary}
{sections}
<section class="settings">{settings}</section>
</main>
<script type="application/json" id="data">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""

BROWSER = """<section id="rollouts">
<h2>Rollouts</h2>
<div class="panel browser">
<div class="filters">
<label id="of-run">Run <select id="run"></select></label>
<fieldset id="kinds" class="pills"><legend>Which</legend></fieldset>
<label class="search">Search <input id="search" type="search" placeholder="text of the problem or the completion"></label>
</div>
<fieldset id="times"><legend>When: <output id="when"></output></legend></fieldset>
<p class="times-key"><span id="from"></span><span class="middle"><i class="good"></i>correct <i class="bad"></i>wrong</span>
<span id="until"></span></p>
<div class="found">
<div><p id="count" aria-live="polite"></p><ol id="list" aria-label="Rollouts that match"></ol></div>
<article id="rollout">
<p class="badges" id="badges"></p>
<div class="sides">
<div><h3>Prompt</h3><pre id="question" tabindex="0"></pre><h3>Known solution</h3><pre id="trace" tabindex="0"></pre></div>
<div><h3>Canvas at the start</h3><pre id="start" tabindex="0"></pre></div>
<div><h3>Completion, as graded</h3><pre id="text" tabindex="0"></pre></div>
<div><h3>Answer read</h3><pre id="stated"></pre><h3>Right answer</h3><pre id="answer"></pre></div>
<div><h3>Verdict</h3><p id="verdict"></p></div>
</div>
<h3>Denoising</h3>
<div class="controls">
<button id="play" type="button">▶ Play</button>
<label class="time">Step <input id="time" type="range" min="0" step="1"><output id="now"></output></label>
</div>
<div id="tokens"></div>
<ul class="legend">
<li><span id="first-step">step 1</span><span id="scale"></span><span id="last-step"></span></li>
<li><span class="token hint">abc</span> hint, given from the start</li>
<li><span class="token masked">abc</span> not yet written</li>
<li><span class="token ended">abc</span> end of the answer</li>
</ul>
</article>
</div>
</div>
</section>"""

STYLE = """
:root { --ink: #1d2632; --soft: #5b6675; --line: #dfe4ea; --orange: #e8710a; --good: #2a9d6f; --bad: #c8453b;
 --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: #f5f7f9; color: var(--ink);
 font: 15px/1.5 Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 1280px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 34px; }
.kind { margin: 0; color: var(--orange); font-weight: 600; font-size: 13px; letter-spacing: .08em;
 text-transform: uppercase; }
h1 { margin: 0; font-size: 34px; line-height: 1.2; letter-spacing: -.02em; }
h2 { margin: 36px 0 12px; font-size: 20px; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 15px; }
ul { list-style: none; margin: 0; padding: 0; }
.facts { display: flex; flex-wrap: wrap; margin-top: 8px; color: var(--soft); font-size: 14px; }
.facts li + li::before { content: "·"; margin: 0 .6em; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 24px; }
.cards li, figure, .panel, details { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.cards li { flex: 1 1 200px; padding: 14px 18px; display: flex; flex-direction: column; }
.cards li:first-child { flex-grow: 1.5; }
.cards h2 { margin: 0; font-size: 13px; font-weight: 500; letter-spacing: 0; color: var(--soft); }
.cards strong { font-size: 27px; line-height: 1.35; letter-spacing: -.02em; white-space: nowrap;
 font-variant-numeric: tabular-nums; }
.cards span { font-size: 13px; color: var(--soft); }
/* What is alone in the last row takes all of it. */
.grid { display: flex; flex-wrap: wrap; gap: 14px; }
figure { flex: 1 1 calc(100% / var(--columns) - 14px); min-width: 0; margin: 0; padding: 14px 14px 6px; display: flex;
 flex-direction: column; }
figcaption { flex: 1; }
figcaption p { margin: 0 0 4px; font-size: 13px; line-height: 1.4; color: var(--soft); }
.keys { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12.5px; color: #3c4654; }
.keys li { display: flex; align-items: center; gap: 6px; }
.keys i { width: 20px; }
.columns-2 { --columns: 2; }
.columns-3 { --columns: 3; }
.plot { height: 220px; }
.columns-2 .plot { height: 270px; }
.panel { padding: 16px 18px; }
fieldset { border: 0; margin: 0; padding: 0; min-width: 0; }
.filters { display: flex; flex-wrap: wrap; gap: 12px 22px; align-items: start; font-size: 14px; }
.filters > label, legend { color: var(--soft); font-size: 13px; }
.filters > label { display: flex; flex-direction: column; gap: 3px; }
legend { padding: 0; margin-bottom: 3px; }
.search { flex: 1; min-width: 200px; }
select, input[type=search] { font: inherit; font-size: 14px; color: var(--ink); padding: 5px 9px; width: 100%;
 border: 1px solid #c5ccd5; border-radius: 7px; background: #fff; }
.pills div { display: flex; flex-wrap: wrap; gap: 6px; }
.pills label, #times label { position: relative; cursor: pointer; }
.pills input, #times input { position: absolute; opacity: 0; inset: 0; margin: 0; width: 100%; height: 100%; cursor: pointer; }
.pills span { display: block; padding: 4px 11px; border: 1px solid #c5ccd5; border-radius: 20px; }
.pills input:checked + span { background: #24303f; border-color: #24303f; color: #fff; }
#times { margin-top: 14px; }
#times > div { display: flex; align-items: stretch; height: 54px; gap: 2px; border-bottom: 1px solid #c5ccd5; }
#times label { flex: 1 1 0; min-width: 0; }
#times span { display: flex; flex-direction: column; justify-content: flex-end; height: 100%; border-radius: 3px 3px 0 0; }
#times label:hover span { background: #f0f2f5; }
#times input:checked + span { background: #dfe5ec; box-shadow: 0 3px 0 #24303f; }
#times .all { flex: 0 0 auto; align-self: center; padding-right: 8px; }
#times .all span { height: auto; padding: 4px 11px; border: 1px solid #c5ccd5; border-radius: 20px; font-size: 14px; }
#times .all input:checked + span { background: #24303f; border-color: #24303f; color: #fff; box-shadow: none; }
#times i, .times-key i { background: var(--good); }
#times i.bad, .times-key i.bad { background: var(--bad); }
#times i { display: block; margin: 0 1px; }
.times-key { display: flex; justify-content: space-between; flex-wrap: wrap; gap: 2px 14px; margin: 3px 0 14px;
 font-size: 12.5px; color: var(--soft); }
.times-key i { display: inline-block; width: 10px; height: 10px; margin: 0 4px 0 10px; border-radius: 2px; }
:focus-visible, .pills input:focus-visible + span, #times input:focus-visible + span { outline: 3px solid #7aa7e8;
 outline-offset: 1px; }
.found { display: grid; grid-template-columns: 270px minmax(0, 1fr); gap: 24px; border-top: 1px solid var(--line);
 padding-top: 12px; }
#count { margin: 0 0 6px; font-size: 13px; color: var(--soft); }
#list { list-style: none; margin: 0; padding: 3px; max-height: 460px; overflow-y: auto; }
#list button { display: grid; grid-template-columns: 1fr auto; gap: 0 8px; width: 100%; padding: 5px 9px; border: 0;
 border-left: 4px solid var(--bad); border-radius: 4px; background: none; text-align: left; cursor: pointer;
 font: inherit; font-size: 13px; color: var(--soft); margin-bottom: 3px; }
#list button.good { border-color: var(--good); }
#list button:hover { background: #f0f2f5; }
#list button[aria-current=true] { background: #dfe5ec; color: var(--ink); }
#list button span:last-child { grid-column: 1 / 3; overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
 font: 12.5px/1.5 var(--mono); color: var(--ink); }
.sides { display: grid; gap: 0 20px;
 grid-template-columns: minmax(0, 1.3fr) minmax(0, 1.3fr) minmax(0, 1.5fr) minmax(0, .9fr) minmax(0, .9fr); }
#rollout h3 { font-size: 13px; font-weight: 500; color: var(--soft); margin-bottom: 4px; }
#verdict { margin: 0 0 14px; font-size: 14px; }
.sides pre { max-height: 300px; overflow: auto; }
.given { background: #fff4e8; color: #8a3f00; box-shadow: inset 0 0 0 2px var(--orange); border-radius: 3px;
 padding: 1px 4px; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.unset { color: var(--soft); }
.controls { display: flex; flex-wrap: wrap; gap: 16px; align-items: center; padding-bottom: 12px;
 font-size: 14px; color: var(--soft); }
.controls label { display: flex; align-items: center; gap: 8px; }
.controls button { font: inherit; font-weight: 600; width: 96px; padding: 6px 0; border: 0;
 border-radius: 7px; background: #24303f; color: #fff; cursor: pointer; }
.controls button:hover { background: #3b4a5e; }
.time { flex: 1; min-width: 200px; }
.time input { flex: 1; min-width: 0; accent-color: #24303f; }
.time output { min-width: 62px; color: var(--ink); text-align: right; font-variant-numeric: tabular-nums; }
.runs { display: flex; flex-wrap: wrap; gap: 2px 20px; padding: 8px 0; overflow-wrap: anywhere; position: sticky; top: 0;
 z-index: 5; background: #f5f7f9; border-bottom: 1px solid var(--line); max-height: 30vh; overflow-y: auto; }
.runs li { display: flex; align-items: center; gap: 8px; font-weight: 600; }
.runs i { flex: none; width: 22px; height: 6px; border-radius: 3px; }
.numbers p { margin: 0 0 8px; font-size: 13px; color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td { overflow-wrap: break-word; min-width: 96px; max-width: 340px; }
pre { margin: 0 0 14px; font: 14px/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
.badges { margin: 0 0 12px; display: flex; flex-wrap: wrap; gap: 6px; }
.badge { padding: 1px 9px; border-radius: 20px; font-size: 13px; font-weight: 500; background: #edf0f4;
 color: #3c4654; }
.badge.good { background: #ddf3e8; color: #14613f; }
.badge.bad { background: #fbe3e0; color: #92281f; }
.badge.hinted { background: #fff; color: #a84e00; box-shadow: inset 0 0 0 2px var(--orange); }
#tokens { display: flex; flex-wrap: wrap; gap: 4px 3px; margin-bottom: 16px; }
.token { position: relative; min-width: 20px; height: 28px; padding: 0 5px; border-radius: 5px;
 text-align: center; font: 14px/28px var(--mono); white-space: pre; }
.token.fresh { box-shadow: 0 0 0 2px #fff, 0 0 0 4px #24303f; z-index: 1; }
.token.hint { background: #fff4e8; color: #8a3f00; font-weight: 700;
 box-shadow: inset 0 0 0 3px var(--orange); }
.token.ended { background: #f0f2f5; color: #97a1ae; }
.token.masked { background: #e6eaef; color: transparent; }
.token.masked::after { content: "▁"; position: absolute; inset: 0; color: #a7b1bd; }
.break { flex-basis: 100%; height: 0; }
button.token { border: 0; cursor: pointer; padding: 0 9px; font-family: inherit; font-size: 13px; }
button.token:hover { color: #3c4654; }
.legend { display: flex; flex-wrap: wrap; gap: 8px 20px; padding-top: 12px; border-top: 1px solid var(--line);
 font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: 8px; }
.legend .token { height: 22px; line-height: 22px; font-size: 12px; }
#scale { width: 110px; height: 12px; border-radius: 3px; }
.settings { margin: 36px 0 48px; display: grid; gap: 10px; }
details { padding: 10px 18px; }
summary { cursor: pointer; font-weight: 600; }
details pre { margin-top: 10px; font-size: 13px; }
.empty { color: var(--soft); }
@media (max-width: 1020px) {
 .columns-3 { --columns: 2; }
 .found { grid-template-columns: minmax(0, 1fr); gap: 12px; }
 #list { max-height: 230px; }
 article { border-top: 1px solid var(--line); padding-top: 12px; }
}
@media (max-width: 680px) {
 .columns-3, .columns-2 { --columns: 1; }
 .sides { grid-template-columns: minmax(0, 1fr); }
 header, main { padding-left: 14px; padding-right: 14px; }
 .panel { padding: 12px; }
}
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
data.figures.forEach((figure, i) => Plotly.newPlot("figure-" + i, figure.data, figure.layout,
  {responsive: true, displayModeBar: false}));

if (document.getElementById("rollouts")) {
  const element = (id) => document.getElementById(id);
  const {pieces, runs} = data.rollouts;
  // Viridis: even steps look even, also in grey and to the colour-blind.
  const viridis = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b",
                   "fde725"].map((hex) => [0, 2, 4].map((i) => Number("0x" + hex.slice(i, i + 2))));
  const color = (share) => {
    const at = share * (viridis.length - 1), low = Math.min(Math.floor(at), viridis.length - 2);
    return viridis[low].map((from, i) => from + (at - low) * (viridis[low + 1][i] - from));
  };
  const rgb = (parts) => "rgb(" + parts.map(Math.round).join(",") + ")";
  // Whether white stands out more than black, by the relative luminance of WCAG 2.2: one of them always does at 4.5 to 1.
  const isDark = (parts) => {
    const [r, g, b] = parts.map((part) => part / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.179;
  };
  element("scale").style.background = "linear-gradient(90deg," + viridis.map(rgb).join(",") + ")";

  // Everything that a model or a data file wrote becomes textContent, never markup.
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  };
  const fill = (id, text) => { element(id).textContent = text; };

  const KINDS = [
    ["All", () => true],
    ["Rewarded", (rollout) => rollout.reward > 0],
    ["Rescued", (rollout) => rollout.rescued],
    ["Failed", (rollout) => !rollout.correct],
    ["Hinted", (rollout) => rollout.hinted],
  ];
  const MOST_BARS = 40;
  let rollouts = [], bars = [], shown = [], current = null;
  let boxes = [], steps = 1, timer = null, open = false;

  // Choosing: a group of radio buttons is one stop of the tab key, and arrow keys move within it.
  function choices(id, names) {
    const holder = make("div", "", "");
    const spans = names.map((name, i) => {
      const label = make("label", "", ""), input = make("input", "", ""), span = make("span", "", i ? "" : "All");
      Object.assign(input, {type: "radio", name: id, value: i, checked: i === 0, onchange: refresh});
      input.setAttribute("aria-label", name);
      label.title = name;
      label.className = i ? "" : "all";
      label.append(input, span);
      holder.append(label);
      return span;
    });
    element(id).querySelector("div")?.remove();
    element(id).append(holder);
    return spans;
  }
  const chosen = (id) => Number(element(id).querySelector("input:checked").value);

  function openRun() {
    rollouts = runs[element("run").value];
    const all = [...new Set(rollouts.map((rollout) => rollout.step))].sort((a, b) => a - b);
    const many = Math.ceil(all.length / MOST_BARS);
    bars = [];
    for (let i = 0; i < all.length; i += many) bars.push({from: all[i], to: all[Math.min(i + many, all.length) - 1]});
    for (const bar of bars) bar.name = "update " + bar.from + (bar.to > bar.from ? " to " + bar.to : "");
    const spans = choices("times", ["all updates", ...bars.map((bar) => bar.name)]);
    bars.forEach((bar, i) => { bar.span = spans[i + 1]; });
    fill("from", "update " + all[0]);
    fill("until", "update " + all[all.length - 1]);
    current = rollouts.find((rollout) => rollout.rescued) ?? rollouts[0];
    refresh();
  }

  function refresh() {
    const words = element("search").value.toLowerCase(), kind = KINDS[chosen("kinds")][1];
    const found = rollouts.filter((rollout) => kind(rollout) &&
      [rollout.question, rollout.trace, rollout.text].some((text) => text.toLowerCase().includes(words)));
    const of = (bar) => found.filter((rollout) => bar.from <= rollout.step && rollout.step <= bar.to);
    const highest = Math.max(1, ...bars.map((bar) => of(bar).length));
    for (const bar of bars) {
      const right = of(bar).filter((rollout) => rollout.correct).length, wrong = of(bar).length - right;
      bar.span.replaceChildren(...[["bad", wrong], ["good", right]].map(([className, number]) => {
        const part = make("i", className, "");
        part.style.height = 100 * number / highest + "%";
        return part;
      }));
      bar.span.parentNode.title = bar.name + ": " + right + " correct, " + wrong + " wrong";
    }
    const bar = bars[chosen("times") - 1];
    fill("when", bar ? bar.name : "all updates");
    shown = bar ? of(bar) : found;
    fill("count", shown.length + " of " + rollouts.length + " rollouts");
    element("list").replaceChildren(...shown.map((rollout, i) => {
      const item = make("li", "", ""), button = make("button", rollout.correct ? "good" : "bad", "");
      button.type = "button";
      button.append(make("span", "", "update " + rollout.step + (rollout.hinted ? ", with hints" : "")),
        make("span", "", rollout.rescued ? "rescued" : rollout.correct ? "correct" : "wrong"),
        make("span", "", rollout.question.replaceAll("\\n", " ").slice(0, 80)));
      button.onclick = () => choose(rollout);
      item.append(button);
      return item;
    }));
    element("rollout").hidden = !shown.length;
    if (shown.length) choose(shown.includes(current) ? current : shown[0]);
  }

  function choose(rollout) {
    stop();
    current = rollout;
    element("list").querySelectorAll("button").forEach((button, i) => {
      button.setAttribute("aria-current", shown[i] === rollout);
      button.tabIndex = shown[i] === rollout ? 0 : -1;
    });
    load();
  }

  // One rollout
  function load() {
    const rollout = current, badge = (text, kind) => make("span", "badge " + kind, text);
    const tokens = rollout.tokens.map((token) => pieces[token]), hint = new Set(rollout.hint);
    element("badges").replaceChildren(
      badge("update " + rollout.step, ""),
      rollout.hinted ? badge("with hints", "hinted") : badge("first try", ""),
      rollout.correct ? badge("correct", "good") : badge("wrong", "bad"),
      ...(rollout.rescued ? [badge("rescued its group", "good")] : []));
    for (const name of ["question", "trace", "text", "answer"]) fill(name, rollout[name]);
    fill("stated", rollout.stated ?? ("stated" in rollout ? "none found" : "not recorded"));
    element("stated").className = rollout.stated == null ? "unset" : "";
    const trouble = {timeout: ", no verdict in time", error: ", the grader failed"}[rollout.outcome] ?? "";
    fill("verdict", (rollout.correct ? "correct" : "wrong") + ", reward " + Number(rollout.reward.toPrecision(4)) + trouble);
    loadStart(tokens, hint);

    steps = Math.max(...rollout.written_at, 0) + 1;
    fill("last-step", "step " + steps);
    element("time").max = steps;
    const end = rollout.end ?? -1, nodes = [];
    boxes = tokens.map((token, i) => {
      const written = rollout.written_at[i];
      const parts = color(Math.max(written, 0) / Math.max(steps - 1, 1));
      const box = make("span", "token", token.replaceAll("\\n", "↵"));
      box.title = hint.has(i) ? "hint" : "written in step " + (written + 1);
      return {box, written, hint: hint.has(i), background: rgb(parts), dark: isDark(parts), ended: end >= 0 && i >= end};
    });
    boxes.forEach(({box}, i) => {
      if (end >= 0 && i > end && !open) return;
      nodes.push(box);
      if (tokens[i].endsWith("\\n")) nodes.push(make("span", "break", ""));
    });
    const hidden = end >= 0 ? tokens.length - end - 1 : 0;
    if (hidden) {
      const toggle = make("button", "token ended", open ? "fold" : "+ " + hidden + " after the end");
      toggle.type = "button";
      toggle.onclick = () => {
        const now = element("time").value;
        open = !open;
        load();
        element("time").value = now;
        show();
        element("tokens").lastChild.focus();
      };
      nodes.push(toggle);
    }
    element("tokens").replaceChildren(...nodes);
    element("time").value = steps;
    show();
  }

  // What the sampler began with: neighbouring hints, and masks, of which long rows are counted.
  function loadStart(tokens, hint) {
    const parts = [];
    tokens.forEach((token, i) => {
      const given = hint.has(i), last = parts[parts.length - 1];
      if (last?.given === given) last.tokens.push(token);
      else parts.push({given, tokens: [token]});
    });
    element("start").replaceChildren(...parts.map(({given, tokens}) => {
      if (given) return make("span", "given", tokens.join(""));
      return make("span", "unset", tokens.length > 6 ? " ▁ × " + tokens.length + " " : "▁".repeat(tokens.length));
    }));
  }

  function show() {
    const now = Number(element("time").value);
    fill("now", now + " / " + steps);
    for (const {box, written, background, dark, ended, hint} of boxes) {
      const masked = written >= now, plain = !masked && !hint && !ended;
      box.className = "token" + (hint ? " hint" : ended ? " ended" : "") + (masked ? " masked" : "") +
        (!hint && written === now - 1 && now < steps ? " fresh" : "");
      box.style.background = plain ? background : "";
      box.style.color = plain ? (dark ? "#fff" : "#000") : "";
    }
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    fill("play", "▶ Play");
  }

  function play() {
    if (timer) return stop();
    const time = element("time");
    if (Number(time.value) >= steps) time.value = 0;
    fill("play", "❚❚ Pause");
    show();
    timer = setInterval(() => {
      time.value = Number(time.value) + 1;
      show();
      if (Number(time.value) >= steps) stop();
    }, Math.min(500, Math.max(40, 8000 / steps)));
  }

  element("list").onkeydown = (event) => {
    const move = {ArrowDown: 1, ArrowUp: -1}[event.key];
    const next = move && shown[shown.indexOf(current) + move];
    if (!move) return;
    event.preventDefault();
    if (next) {
      choose(next);
      element("list").querySelector("[aria-current=true]").focus();
    }
  };
  for (const name of Object.keys(runs)) element("run").append(new Option(name, name));
  element("of-run").hidden = Object.keys(runs).length === 1;
  element("run").onchange = openRun;
  element("search").oninput = refresh;
  element("play").onclick = play;
  element("time").oninput = () => { stop(); show(); };
  choices("kinds", KINDS.map(([name]) => name)).forEach((span, i) => { span.textContent = KINDS[i][0]; });
  openRun();
}
"""
