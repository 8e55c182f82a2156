"""The HTML, CSS and JavaScript of the report; filled in by report.py."""

# The policy makes it a fact, not a promise, that nothing is loaded from elsewhere.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<link rel="icon" href="data:,">
<title>{name} · IGPO run</title>
<style>{style}</style>
</head>
<body>
<header><p class="kind">IGPO run</p><h1>{name}</h1><ul class="facts">{facts}</ul></header>
<main>
<ul class="cards">{cards}</ul>
{sections}
<section class="settings">{result}{config}</section>
</main>
<script type="application/json" id="data">{data}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""

VIEWER = """<section id="denoising">
<h2>Denoising</h2>
<div class="panel">
<div class="controls">
<label>Completion <select id="which"></select></label>
<button id="play" type="button">▶ Play</button>
<label class="time">Step <input id="time" type="range" min="0" step="1"><output id="now"></output></label>
</div>
<div class="viewer">
<div class="problem">
<p class="badges" id="badges"></p>
<h3>Question</h3><pre id="question"></pre>
<h3>Gold solution</h3><pre id="trace"></pre>
</div>
<div class="canvas">
<h3>Completion</h3>
<div id="tokens"></div>
<ul class="legend">
<li><span id="first-step">step 1</span><span id="scale"></span><span id="last-step"></span></li>
<li><span class="token hint">abc</span> hint, given from the start</li>
<li><span class="token masked">abc</span> not yet written</li>
<li><span class="token ended">abc</span> end of the answer</li>
</ul>
</div>
</div>
</div>
</section>"""

STYLE = """
:root { --ink: #1d2632; --soft: #5b6675; --line: #dfe4ea; --orange: #e8710a;
 --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
* { box-sizing: border-box; }
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
.grid { display: grid; gap: 14px; }
.columns-2 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.columns-3 { grid-template-columns: repeat(3, minmax(0, 1fr)); }
figure { margin: 0; padding: 14px 14px 6px; display: flex; flex-direction: column; }
figcaption { flex: 1; }
figcaption p { margin: 0 0 4px; font-size: 13px; line-height: 1.4; color: var(--soft); }
.keys { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12.5px; color: #3c4654; }
.keys li { display: flex; align-items: center; gap: 6px; }
.keys i { width: 14px; height: 3px; border-radius: 2px; }
.plot { height: 220px; }
.columns-2 .plot { height: 270px; }
.panel { padding: 16px 18px; }
.controls { display: flex; flex-wrap: wrap; gap: 16px; align-items: center; padding-bottom: 14px;
 border-bottom: 1px solid var(--line); font-size: 14px; color: var(--soft); }
.controls label { display: flex; align-items: center; gap: 8px; }
.controls select { font: inherit; color: var(--ink); padding: 6px 8px; border: 1px solid #c5ccd5;
 border-radius: 7px; background: #fff; max-width: 470px; }
.controls button { font: inherit; font-weight: 600; width: 96px; padding: 6px 0; border: 0;
 border-radius: 7px; background: #24303f; color: #fff; cursor: pointer; }
.controls button:hover { background: #3b4a5e; }
.time { flex: 1; min-width: 220px; }
.time input { flex: 1; accent-color: #24303f; }
.time output { min-width: 62px; color: var(--ink); text-align: right; font-variant-numeric: tabular-nums; }
.viewer { display: grid; grid-template-columns: minmax(240px, 1fr) 2.4fr; gap: 28px; padding-top: 14px; }
.viewer h3 { font-size: 13px; font-weight: 500; color: var(--soft); margin-bottom: 4px; }
pre { margin: 0 0 14px; font: 14px/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
.badges { margin: 0 0 12px; display: flex; flex-wrap: wrap; gap: 6px; }
.badge { padding: 1px 9px; border-radius: 20px; font-size: 13px; font-weight: 500; background: #edf0f4;
 color: #3c4654; }
.badge.good { background: #ddf3e8; color: #14613f; }
.badge.bad { background: #fbe3e0; color: #92281f; }
.badge.hinted { background: #fff; color: #a84e00; box-shadow: inset 0 0 0 2px var(--orange); }
.canvas { display: flex; flex-direction: column; }
#tokens { flex: 1; align-content: start; display: flex; flex-wrap: wrap; gap: 4px 3px; margin-bottom: 16px; }
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
 .columns-3, .columns-2 { grid-template-columns: repeat(2, minmax(0, 1fr)); }
 .viewer { grid-template-columns: 1fr; gap: 6px; }
}
@media (max-width: 680px) {
 .columns-3, .columns-2 { grid-template-columns: minmax(0, 1fr); }
 header, main { padding-left: 14px; padding-right: 14px; }
}
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
data.figures.forEach((figure, i) => Plotly.newPlot("figure-" + i, figure.data, figure.layout,
  {responsive: true, displayModeBar: false}));

if (data.rollouts.length) {
  const element = (id) => document.getElementById(id);
  // Viridis: even steps look even, also in grey and to the colour-blind.
  const viridis = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b",
                   "fde725"].map((hex) => [0, 2, 4].map((i) => Number("0x" + hex.slice(i, i + 2))));
  const color = (share) => {
    const at = share * (viridis.length - 1), low = Math.min(Math.floor(at), viridis.length - 2);
    return viridis[low].map((from, i) => from + (at - low) * (viridis[low + 1][i] - from));
  };
  const rgb = (parts) => "rgb(" + parts.map(Math.round).join(",") + ")";
  const isDark = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b < 140;
  element("scale").style.background = "linear-gradient(90deg," + viridis.map(rgb).join(",") + ")";

  let boxes = [], steps = 1, timer = null, open = false;
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    return node;
  };

  function show() {
    const now = Number(element("time").value);
    element("now").textContent = now + " / " + steps;
    for (const {box, written, background, dark, ended, hint} of boxes) {
      const masked = written >= now, plain = !masked && !hint && !ended;
      box.className = "token" + (hint ? " hint" : ended ? " ended" : "") + (masked ? " masked" : "") +
        (!hint && written === now - 1 && now < steps ? " fresh" : "");
      box.style.background = plain ? background : "";
      box.style.color = plain ? (dark ? "#fff" : "#14202c") : "";
    }
  }

  function load() {
    const rollout = data.rollouts[element("which").value];
    element("question").textContent = rollout.question;
    element("trace").textContent = rollout.trace;
    const badge = (text, kind) => make("span", "badge " + kind, text);
    element("badges").replaceChildren(
      badge("update " + rollout.step, ""),
      rollout.try === "hinted" ? badge("with hints", "hinted") : badge("first try", ""),
      rollout.reward > 0 ? badge("correct", "good") : badge("wrong", "bad"),
      ...(rollout.rescued ? [badge("rescued its group", "good")] : []));
    steps = Math.max(...rollout.written_at) + 1;
    element("last-step").textContent = "step " + steps;
    element("time").max = steps;
    const end = rollout.end ?? -1, nodes = [];
    boxes = rollout.tokens.map((token, i) => {
      const written = rollout.written_at[i];
      const parts = color(Math.max(written, 0) / Math.max(steps - 1, 1));
      const box = make("span", "token", token === "\\n" ? "↵" : token.replaceAll("\\n", "↵"));
      const hint = rollout.hint[i];
      box.title = hint ? "hint" : "written in step " + (written + 1);
      return {box, written, hint, background: rgb(parts), dark: isDark(parts), ended: end >= 0 && i >= end};
    });
    boxes.forEach(({box}, i) => {
      if (end >= 0 && i > end && !open) return;
      nodes.push(box);
      if (rollout.tokens[i].endsWith("\\n")) nodes.push(make("span", "break", ""));
    });
    const hidden = end >= 0 ? rollout.tokens.length - end - 1 : 0;
    if (hidden) {
      const toggle = make("button", "token ended", open ? "fold" : "+ " + hidden + " after the end");
      toggle.onclick = () => {
        const now = element("time").value;
        open = !open;
        load();
        element("time").value = now;
        show();
      };
      nodes.push(toggle);
    }
    element("tokens").replaceChildren(...nodes);
    element("time").value = steps;
    show();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    element("play").textContent = "▶ Play";
  }

  function play() {
    if (timer) return stop();
    const time = element("time");
    if (Number(time.value) >= steps) time.value = 0;
    element("play").textContent = "❚❚ Pause";
    show();
    timer = setInterval(() => {
      time.value = Number(time.value) + 1;
      show();
      if (Number(time.value) >= steps) stop();
    }, Math.min(500, Math.max(40, 8000 / steps)));
  }

  data.rollouts.forEach((rollout, i) => {
    const kind = rollout.try === "hinted" ? "with hints" : "first try";
    const question = rollout.question.replaceAll("\\n", " ").slice(0, 36);
    const option = make("option", "", "update " + rollout.step + ", " + kind + ", " +
      (rollout.reward > 0 ? "correct" : "wrong") + ": " + question);
    option.value = i;
    element("which").append(option);
  });
  element("which").value = Math.max(0, data.rollouts.findIndex((rollout) => rollout.rescued));
  element("which").onchange = () => { stop(); load(); };
  element("play").onclick = play;
  element("time").oninput = () => { stop(); show(); };
  load();
}
"""
