// The page of an unfinished run loads itself again every minute, and goes back to where the reader was.
const fields = () => [...document.querySelectorAll("main select, main input")];
const keyOf = (field) => field.id || field.name + (field.getAttribute("aria-label") ?? field.value);
// A page that is written later may show other rollouts, so the open one is known by its text.
const opened = () => document.querySelector("#list button[aria-current=true]")?.textContent;

function place() {
  const valueOf = (field) => ["radio", "checkbox"].includes(field.type) ? field.checked : field.value;
  const chosen = fields().filter((field) => field.type !== "radio" || field.checked);
  const values = chosen.map((field) => [keyOf(field), valueOf(field)]);
  const details = [...document.querySelectorAll("details[open] summary")].map((summary) => summary.textContent);
  return {values, details, rollout: opened(), top: scrollY, left: scrollX, focus: document.activeElement.id};
}

function goTo({values, details, rollout, top, left, focus}) {
  const restore = ([key, value]) => {
    const field = fields().find((field) => keyOf(field) === key), property = typeof value === "boolean" ? "checked" : "value";
    if (!field || field[property] === value) return;
    field[property] = value;
    field.dispatchEvent(new Event("input"));
    field.dispatchEvent(new Event("change"));
  };
  values.forEach(restore);  // in the order of the page: the choice of a run makes new fields
  [...document.querySelectorAll("#list button")].find((button) => button.textContent === rollout)?.click();
  restore(["time", new Map(values).get("time")]);
  document.querySelectorAll("summary").forEach((summary) => {
    summary.parentNode.open = details.includes(summary.textContent);
  });
  element(focus)?.focus({preventScroll: true});
  scrollTo(left, top);
}

if (history.state) {
  goTo(history.state);
  history.replaceState(null, "");
}
if (element("live")) {
  setInterval(() => {
    if (!element("live").checked || document.hidden || element("play")?.textContent.includes("Pause")) return;
    history.replaceState(place(), "");
    location.reload();
  }, 60000);
}
