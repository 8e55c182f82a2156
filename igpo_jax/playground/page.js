const source = "<!doctype html>\n" + document.documentElement.outerHTML;  // before anything changes it
const live = element("recordings").textContent === "null";
const spoken = (text) => text.trim() ? text : text.replaceAll(" ", "space ").replaceAll("\n", "line break ");
const percent = (share) => (100 * share).toFixed(share < 0.1 ? 2 : 1) + " %";
const chosen = (name) => document.querySelector("input[name=" + name + "]:checked").value;
const cellShade = (cell, frames) => shade(
  chosen("color") === "step" ? (cell.frame - 1) / Math.max(frames - 1, 1) : cell.probability ?? 1);
const isLong = (prompt) => prompt.length > 240 || prompt.split("\n").length > 3;
const isMasked = (cell, now) => cell.text === null || cell.frame > now;
let panels = [], running = null;

// One result: the request, the cells of its canvas, and the number of steps (frames). A cell shows its text from its frame on,
// a given cell from frame 0.
class Panel {
  constructor(recording) {
    this.recording = recording;
    this.root = element("panel").content.cloneNode(true).firstElementChild;
    this.find = (selector) => this.root.querySelector(selector);
    this.slider = this.find("input[type=range]");
    this.buttons = [];
    for (const name of ["title", "prompt", "how"]) this.find("." + name).textContent = recording[name];
    this.pause = makePlayer(this.slider, this.find(".play"), () => this.paint());
    this.fold(isLong(recording.prompt));
    this.find(".unfold").hidden = !isLong(recording.prompt);
    this.find(".unfold").onclick = () => this.fold(!this.find(".prompt").classList.contains("folded"));
    this.find(".copy").onclick = () => this.copy();
    this.find(".gif").onclick = () => this.saveGif();
    this.find(".canvas").onkeydown = (event) => this.move(event);
    element("panels").append(this.root);
    if (recording.cells.length) this.lay();
    if (!recording.running) this.finish();
  }

  say(text, bad = false) {
    const role = bad ? "alert" : "status";
    Object.assign(this.find(".status"), {textContent: text, className: bad ? "status bad" : "status", role});
  }

  fold(folded) {
    this.find(".prompt").classList.toggle("folded", folded);
    const textContent = folded ? "Show the whole prompt" : "Fold the prompt";
    Object.assign(this.find(".unfold"), {textContent, ariaExpanded: String(!folded)});
  }

  lay() {
    const {cells, frames} = this.recording;
    this.buttons = cells.map((_, i) => {
      const button = Object.assign(make("button", "token"), {type: "button", tabIndex: i ? -1 : 0});
      button.onfocus = button.onmouseenter = button.onclick = () => this.inspect(i);
      return button;
    });
    this.find(".canvas").replaceChildren(...this.buttons.flatMap((button) => [button, make("span", "break")]));
    Object.assign(this.slider, {disabled: false, max: frames, value: frames});  // in this order: max bounds value
    this.paint();
  }

  wrote({step, written}) {
    const {recording, slider} = this, follows = slider.valueAsNumber === recording.frames;
    recording.frames += 1;
    for (const [position, text, probability, alternatives] of written) {
      recording.cells[position] = {text, probability, alternatives, frame: recording.frames, step: step + 1};
    }
    slider.max = recording.frames;
    if (follows) slider.value = recording.frames;
    this.say("Step " + (step + 1) + " of at most " + recording.steps);
    Object.assign(this.find("progress"), {hidden: false, max: recording.steps, value: step + 1});
    this.paint();
  }

  finish() {
    const {recording} = this;
    recording.running = false;
    this.find("progress").hidden = true;
    this.find(".play").disabled = this.find(".gif").disabled = !recording.frames;
    this.find(".result").hidden = recording.text === null;
    this.find(".text").textContent = recording.text || "(nothing)";
    if (recording.said) this.say(recording.said, recording.bad);
    this.paint();
  }

  paint() {
    const {recording} = this, now = this.slider.valueAsNumber;
    const frames = recording.running ? Math.max(recording.frames, recording.steps) : recording.frames;
    this.find("output").textContent = now + " / " + recording.frames;
    this.buttons.forEach((button, i) => {
      const cell = recording.cells[i], masked = isMasked(cell, now), given = cell.frame === 0 && !masked;
      const color = masked || given ? null : cellShade(cell, frames);
      button.textContent = masked ? "▁" : visibleText(cell.text);
      button.className = "token" + (given ? " given" : color && cell.frame === now ? " fresh" : "");
      button.style.background = color ? hex(color) : "";
      button.style.color = color ? (isDark(color) ? "#fff" : "#000") : "";
      button.setAttribute("aria-label", masked ? "blank" : spoken(cell.text) + (given ? ", given" : ", step " + cell.step));
      button.nextSibling.hidden = masked || !cell.text.endsWith("\n");
    });
  }

  inspect(i) {
    const cell = this.recording.cells[i], masked = isMasked(cell, this.slider.valueAsNumber);
    const quote = "“" + visibleText(cell.text ?? "") + "”";
    this.buttons.forEach((button, j) => { button.tabIndex = i === j ? 0 : -1; });
    const what = masked ? "A blank, not yet written." : cell.frame === 0 ? quote + " was given."
      : cell.probability === null ? quote + " follows from the end of the text."
        : quote + ", written in step " + cell.step + ", probability " + percent(cell.probability);
    const list = make("ol", "");
    for (const [text, share] of masked ? [] : cell.alternatives || []) {
      const row = make("li", ""), bar = make("span", "bar");
      bar.style.width = 100 * share + "%";
      row.append(make("b", "", visibleText(text)), bar, make("span", "", percent(share)));
      list.append(row);
    }
    this.find(".inspector").replaceChildren(make("p", "", what), list);
  }

  move(event) {
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    const at = this.buttons.indexOf(document.activeElement);
    if (!by || at < 0) return;
    event.preventDefault();
    this.buttons[Math.min(Math.max(at + by, 0), this.buttons.length - 1)].focus();
  }

  async copy() {
    const button = this.find(".copy");
    try {
      await navigator.clipboard.writeText(this.recording.text);  // missing on pages of other machines without TLS
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(this.find(".text"));
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  }

  async saveGif() {
    const {cells, frames} = this.recording;
    const drawn = cells.map((cell) => [(cell.text ?? "").slice(0, 64), cell.text === null ? frames + 1 : cell.frame,
      hex(cellShade(cell, frames)), cell.frame === 0 && cell.text !== null]);
    try {
      save(await (await ask("gif", {frames, cells: drawn})).blob(), "denoising.gif");
    } catch (error) {
      this.say(error.message, true);
    }
  }
}

function save(blob, name) {
  const link = Object.assign(make("a", ""), {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function savePage() {
  // "<" is escaped so that no text can end the script element around it.
  const recordings = panels.map((panel) => panel.recording), facts = element("facts").textContent;
  const data = JSON.stringify({facts, recordings}).replaceAll("<", "\\u003c");
  const page = source.replace("connect-src 'self'", "connect-src 'none'")
    .replace('id="recordings">null<', () => 'id="recordings">' + data + "<");
  save(new Blob([page], {type: "text/html"}), "denoising.html");
}

// Requests a path of the server; posts the values, if there are any.
async function ask(path, values, signal) {
  const headers = {"Content-Type": "application/json"};
  const options = values && {method: "POST", headers, body: JSON.stringify(values), signal};
  const response = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer; is it still running?");
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Error(body.error || "The server answers " + response.status + ".");
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part.slice("data: ".length));
  }
}

async function generate(panel, request, signal) {
  const {recording} = panel;
  try {
    panel.say("Asking …");
    for await (const event of eventsOf(await ask("generate", request, signal))) {
      if (event.type === "place") {
        panel.say(event.ahead ? "Waiting, " + event.ahead + " ahead" : "Starting; a new setting is compiled first …");
      } else if (event.type === "start") {
        recording.cells = event.canvas.map((text) => ({text, frame: 0}));
        recording.steps ??= event.canvas.filter((text) => text === null).length;
        panel.lay();
      } else if (event.type === "step") {
        panel.wrote(event);
      } else if (event.type === "done") {
        recording.text = event.text;
        const {seconds, compile_seconds: compiling} = event;
        recording.said = "Done in " + (seconds - compiling).toFixed(2) + " s, " + recording.frames + " steps" +
          (compiling ? ", after compiling new settings for " + compiling.toFixed(2) + " s" : "");
      } else throw new Error(event.message);
    }
    if (!recording.said) throw new Error("The connection ended before the text was complete.");
  } catch (error) {
    recording.bad = error.name !== "AbortError";
    recording.said = recording.bad ? error.message : "Stopped after " + recording.frames + " steps";
  }
  panel.finish();
}

// Returns a form's values, with the types that the server expects.
function settingsOf(form, isTemplate) {
  const values = {};
  for (const {name, type, value, checked} of form.elements) {
    if (isTemplate && ["completion_length", "block_length"].includes(name)) continue;
    if (type !== "number" || value !== "") values[name] = {checkbox: checked, number: Number(value)}[type] ?? value;
  }
  return values;
}

function settingsText(settings) {
  const {commit, cache} = settings;
  const left = {threshold: commit !== "threshold", factor: commit !== "factor", fallback: !["threshold", "factor"].includes(commit),
    refresh: cache === "none", cfg_scale: !settings.cfg_scale, cache: cache === "none", top_p: settings.top_p === 1,
    top_k: !settings.top_k, alg_temp: !settings.alg_temp};
  return Object.entries(settings).filter(([name, value]) => !left[name] && value !== false)
    .map(([name, value]) => value === true ? name : name + "=" + value).join(", ");
}

// The fields that a link to this page has, {name in the link: field}. Those of the second setting have names that begin with b.
function linked() {
  const isTemplate = chosen("mode") === "template", found = {};
  for (const name of ["prompt", "chat", isTemplate ? "template" : "hint", "seed", "compare"]) found[name] = element(name);
  [...element("settings").children].forEach((form, i) => {
    if (i && !element("compare").checked) return;
    for (const field of form.elements) found[(i ? "b." : "") + field.name] = field;
  });
  return found;
}

function link() {
  const valueOf = (field) => field.type === "checkbox" ? field.checked : field.value;
  const values = Object.entries(linked()).map(([name, field]) => [name, valueOf(field)]);
  return "#" + new URLSearchParams([["mode", chosen("mode")], ...values]);
}

// Fills the fields with the values of this page's address. Anybody may have written the link, so nothing is generated.
function fillFromLink() {
  const values = new URLSearchParams(location.hash.slice(1));
  if (!values.size) return;
  const isTemplate = values.get("mode") === "template";
  for (const radio of document.querySelectorAll("[name=mode]")) radio.checked = isTemplate === (radio.value === "template");
  modeChanged();
  element("compare").checked = values.get("compare") === "true";
  for (const [name, field] of Object.entries(linked())) {
    const value = values.get(name), before = field.value;
    if (value === null || field.disabled) continue;
    if (field.type === "checkbox") field.checked = value === "true";
    else field.value = value;
    // A number field drops what is no number, and a choice what it does not offer.
    const dropped = (field.type === "number" && field.value !== value) || field.selectedIndex < 0;
    if (dropped || !field.validity.valid) field.value = before;
  }
  if (!panels.length) element("nothing").textContent = "The fields are filled from a link. Read them, then press Generate.";
  show();
}

function display(recordings) {
  panels.forEach((panel) => panel.pause());
  element("panels").replaceChildren();
  element("panels").className = recordings.length > 1 ? "two" : "";
  panels = recordings.map((recording) => new Panel(recording));
}

async function start(event) {
  event.preventDefault();
  if (running) return;
  const rest = chosen("mode") === "template" ? "template" : "hint";
  const shared = {prompt: element("prompt").value, chat: element("chat").checked, seed: Number(element("seed").value),
    [rest]: element(rest).value};
  const prompt = [shared.prompt, shared[rest]].filter(Boolean).join(" … ");
  const settings = [...element("settings").children].filter((form) => !form.hidden)
    .map((form) => settingsOf(form, rest === "template"));
  display(settings.map((setting, i) => ({title: settings.length > 1 ? "Setting " + "AB"[i] : "Result", prompt,
    how: settingsText(setting) + ", seed=" + shared.seed + (shared.chat ? ", chat" : ""),
    steps: setting.steps ?? setting.completion_length ?? null, cells: [], frames: 0, text: null, said: "", bad: false,
    running: true})));
  history.replaceState(null, "", link());
  running = new AbortController();
  show();
  if (matchMedia("(max-width: 800px)").matches) element("panels").scrollIntoView();
  await Promise.all(panels.map((panel, i) => generate(panel, {...shared, ...settings[i]}, running.signal)));
  running = null;
  show();
}

function show() {
  const mode = chosen("mode"), bySteps = chosen("color") === "step", compared = element("compare").checked;
  element("form").dataset.mode = mode;
  element("prompt-name").textContent = mode === "template" ? "What comes before (may be empty)" : "Prompt";
  [...element("settings").children].forEach((form, i) => {
    form.hidden = i > 0 && !compared;
    form.querySelector("legend").textContent = compared ? "Setting " + "AB"[i] : "Setting";
    const values = [form.elements.commit.value, form.elements.cache.value];
    form.querySelectorAll("[data-when]").forEach((label) => {
      label.hidden = !label.dataset.when.split(" ").some((value) => values.includes(value));
    });
  });
  element("least").textContent = bySteps ? "first step" : "0 %";
  element("most").textContent = bySteps ? "last step" : "100 %";
  element("go").disabled = running !== null;
  element("stop").disabled = running === null;
  element("export").disabled = running !== null || !panels.some((panel) => panel.recording.frames);
  panels.forEach((panel) => panel.paint());
}

// A template has text after its blanks, so by default the end of the text is never sampled.
function modeChanged() {
  const isTemplate = chosen("mode") === "template";
  document.querySelectorAll("[name=logits_eos_inf]").forEach((box) => { box.checked = isTemplate; });
  document.querySelectorAll("[name=steps]").forEach((field) => { field.value = isTemplate ? "" : field.defaultValue; });
}

async function begin() {
  showScale();
  document.querySelectorAll("[name=color]").forEach((radio) => { radio.onchange = show; });
  if (!live) {
    document.body.className = "player";
    const {facts, recordings} = JSON.parse(element("recordings").textContent);
    element("facts").textContent = facts + " · a recording; move the slider or press Play";
    display(recordings);
    return show();
  }
  const info = await ask("info").then((response) => response.json()).catch((error) => {
    element("facts").textContent = error.message;
  });
  if (!info) return;
  const million = info.parameters / 1e6;
  const size = million < 1000 ? million.toFixed(million < 10 ? 2 : 0) + " M" : (million / 1000).toFixed(1) + " B";
  element("facts").textContent = [info.name, info.stage && info.stage + ", step " + info.step,
    info.adapters && "adapters " + info.adapters, size + " parameters", info.dtype, info.device].filter(Boolean).join(" · ");
  for (let i = 0; i < 2; i++) {
    const form = element("settings-form").content.cloneNode(true).firstElementChild;
    for (const field of form.elements) {
      const {name} = field, value = info.begin_with[name];
      field.append(...(info.choices[name] ?? []).map((choice) => new Option(choice.replaceAll("_", " "), choice)));
      if (field.type === "checkbox") field.checked = value;
      else field.value = field.defaultValue = value;
      if (info.limits[name]) field.max = info.limits[name];
      const label = field.closest("label"), key = "sampler." + name;
      field.title = label.title = label.title ? key + ": " + label.title : key;
    }
    element("settings").append(form);
  }
  for (const name of ["prompt", "template", "seed"]) element(name).value = info.begin_with[name];
  Object.assign(element("chat"), {checked: info.chat && info.begin_with.chat, disabled: !info.chat});
  if (!info.chat) element("chat").nextElementSibling.textContent = "In the chat template (this model has none)";
  element("form").onchange = (event) => {
    if (event.target.name === "mode") modeChanged();
    show();
  };
  element("form").onsubmit = start;
  element("stop").onclick = () => running?.abort();
  element("export").onclick = savePage;
  window.onhashchange = fillFromLink;
  show();
  fillFromLink();
  document.body.dataset.ready = "";
}
begin();
