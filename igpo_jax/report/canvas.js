if (element("rollouts")) {
  const {pieces, runs} = data.rollouts;
  const fill = (id, text) => { element(id).textContent = text; };
  const KINDS = {All: () => true, Rewarded: (rollout) => rollout.reward > 0, Rescued: (rollout) => rollout.rescued,
    Failed: (rollout) => rollout.correct === false, Hinted: (rollout) => rollout.hinted};
  const MOST_BARS = 40;
  // A rollout without a verdict is neither correct nor wrong.
  const word = ({correct}) => correct === null ? "no verdict" : correct ? "correct" : "wrong";
  const color = ({correct}) => correct === null ? "" : correct ? "good" : "bad";
  let rollouts = [], bars = [], shown = [], current = null, boxes = [], steps = 1, open = false;
  const pause = makePlayer(element("time"), element("play"), show);

  // A group of radio buttons is one stop of the tab key; arrow keys move within it.
  function choices(id, names) {
    const spans = names.map((name, i) => make("span", "", i ? "" : "All"));
    const holder = make("div", "");
    holder.append(...names.map((name, i) => {
      const label = make("label", i ? "" : "all", "", {title: name});
      const input = make("input", "", "", {type: "radio", name: id, value: i, checked: i === 0, onchange: refresh});
      input.setAttribute("aria-label", name);
      label.append(input, spans[i]);
      return label;
    }));
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
    for (let i = 0; i < all.length; i += many) {
      const from = all[i], to = all[Math.min(i + many, all.length) - 1];
      bars.push({from, to, name: "update " + from + (to > from ? " to " + to : "")});
    }
    const spans = choices("times", ["all updates", ...bars.map((bar) => bar.name)]);
    bars.forEach((bar, i) => { bar.span = spans[i + 1]; });
    fill("from", "update " + all[0]);
    fill("until", "update " + all[all.length - 1]);
    current = rollouts.find((rollout) => rollout.rescued) ?? rollouts[0];
    refresh();
  }

  function refresh() {
    const words = element("search").value.toLowerCase(), kind = Object.values(KINDS)[chosen("kinds")];
    const found = rollouts.filter((rollout) => kind(rollout) &&
      [rollout.question, rollout.trace, rollout.text].some((text) => text.toLowerCase().includes(words)));
    const within = (bar) => found.filter((rollout) => bar.from <= rollout.step && rollout.step <= bar.to);
    const highest = Math.max(1, ...bars.map((bar) => within(bar).length));
    for (const bar of bars) {
      const [right, wrong, none] = [true, false, null].map((kind) =>
        within(bar).filter((rollout) => rollout.correct === kind).length);
      bar.span.replaceChildren(...[["bad", wrong], ["good", right]].map(([className, number]) =>
        make("i", className, "", {style: "height: " + 100 * number / highest + "%"})));
      bar.span.parentNode.title = bar.name + ": " + right + " correct, " + wrong + " wrong" +
        (none ? ", " + none + " without a verdict" : "");
    }
    const bar = bars[chosen("times") - 1];
    fill("when", bar ? bar.name : "all updates");
    shown = bar ? within(bar) : found;
    fill("count", shown.length + " of " + rollouts.length + " rollouts");
    element("list").replaceChildren(...shown.map((rollout) => {
      const item = make("li", ""), onclick = () => choose(rollout);
      const button = make("button", color(rollout), "", {type: "button", onclick});
      button.append(make("span", "", "update " + rollout.step + (rollout.hinted ? ", with hints" : "")),
        make("span", "", rollout.rescued ? "rescued" : word(rollout)),
        make("span", "", rollout.question.replaceAll("\n", " ").slice(0, 80)));
      item.append(button);
      return item;
    }));
    element("rollout").hidden = !shown.length;
    element("nothing").hidden = shown.length > 0;
    if (shown.length) choose(shown.includes(current) ? current : shown[0]);
  }

  function choose(rollout) {
    pause();
    current = rollout;
    element("list").querySelectorAll("button").forEach((button, i) => {
      button.setAttribute("aria-current", shown[i] === rollout);
      button.tabIndex = shown[i] === rollout ? 0 : -1;
    });
    load();
  }

  function load() {
    const rollout = current, badge = (text, kind) => make("span", "badge " + kind, text);
    const tokens = rollout.tokens.map((token) => pieces[token]), hint = new Set(rollout.hint);
    element("badges").replaceChildren(badge("update " + rollout.step, ""),
      rollout.hinted ? badge("with hints", "hinted") : badge("first try", ""),
      badge(word(rollout), color(rollout)),
      ...(rollout.rescued ? [badge("rescued its group", "good")] : []));
    for (const name of ["question", "trace", "text", "answer"]) fill(name, rollout[name]);
    fill("extracted-answer", rollout.extracted_answer ?? ("extracted_answer" in rollout ? "none found" : "not recorded"));
    element("extracted-answer").className = rollout.extracted_answer == null ? "unset" : "";
    const trouble = {timeout: "no verdict in time", error: "no verdict, because the grader failed"}[rollout.outcome];
    fill("verdict", trouble ?? word(rollout) + ", reward " + Number(rollout.reward.toPrecision(4)));
    showInitialCanvas(tokens, hint);
    steps = Math.max(...rollout.unmask_step, 0) + 1;
    fill("last-step", "step " + steps);
    element("time").max = steps;
    const end = rollout.end ?? -1, nodes = [];
    boxes = tokens.map((token, i) => {
      const written = rollout.unmask_step[i], given = hint.has(i);
      const parts = shade(Math.max(written, 0) / Math.max(steps - 1, 1));
      const title = given ? "hint" : "written in step " + (written + 1);
      const box = make("span", "token", visibleText(token), {title});
      if (end < 0 || i <= end || open) nodes.push(box, ...(token.endsWith("\n") ? [make("span", "break")] : []));
      return {box, written, hint: given, background: hex(parts), dark: isDark(parts), ended: end >= 0 && i >= end};
    });
    const hidden = end >= 0 ? tokens.length - end - 1 : 0;
    const toggle = () => {
      const now = element("time").value;
      open = !open;
      load();
      element("time").value = now;
      show();
      element("tokens").lastChild.focus();
    };
    const text = open ? "fold" : "+ " + hidden + " after the end";
    if (hidden) nodes.push(make("button", "token ended", text, {type: "button", onclick: toggle}));
    element("tokens").replaceChildren(...nodes);
    element("time").value = steps;
    show();
  }

  // Shows the initial canvas: runs of hint tokens, and runs of masks, the long ones as a count.
  function showInitialCanvas(tokens, hint) {
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

  element("list").onkeydown = (event) => {
    const move = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!move) return;
    event.preventDefault();
    const next = shown[shown.indexOf(current) + move];
    if (!next) return;
    choose(next);
    element("list").querySelector("[aria-current=true]").focus();
  };
  for (const name of Object.keys(runs)) element("run").append(new Option(name, name));
  element("of-run").hidden = Object.keys(runs).length === 1;
  element("run").onchange = openRun;
  element("search").oninput = refresh;
  choices("kinds", Object.keys(KINDS)).forEach((span, i) => { span.textContent = Object.keys(KINDS)[i]; });
  showScale();
  openRun();
}
