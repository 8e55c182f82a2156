const data = JSON.parse(element("data").textContent);
const darkScheme = matchMedia("(prefers-color-scheme: dark)");

// Returns what a run has spent on RL at an update; null before the last update without RL, and for a run without RL.
function spentAt(run, update, axis) {
  if (!Object.hasOwn(data.spent, run)) return null;
  const {update: updates, [axis]: spent} = data.spent[run], next = updates.findIndex((known) => known >= update);
  if (update < updates[0]) return null;
  if (next < 1) return next < 0 ? spent[spent.length - 1] : spent[0];
  const share = (update - updates[next - 1]) / (updates[next] - updates[next - 1]);
  return spent[next - 1] + share * (spent[next] - spent[next - 1]);
}

// Returns the traces and the layout of a figure for an x axis, in the colors of the page.
function prepared({data: traces, layout}, axis, title) {
  const style = getComputedStyle(document.documentElement), color = (name) => style.getPropertyValue("--" + name).trim();
  const moves = (trace) => axis && axis.value !== "update" && trace.meta?.stage === "rl";
  const moved = traces.map((trace) => moves(trace)
    ? {...trace, x: trace.x.map((update) => spentAt(trace.meta.run, update, axis.value))} : trace);
  const lines = {gridcolor: color("line"), zerolinecolor: color("edge"), linecolor: color("edge")};
  const xaxis = {...layout.xaxis, ...lines}, yaxis = {...layout.yaxis, ...lines};
  const shown = {...layout, xaxis, yaxis, font: {...layout.font, color: color("ink")},
    hoverlabel: {...layout.hoverlabel, bgcolor: color("panel"), bordercolor: color("edge"), font: {color: color("ink")}}};
  if (layout.yaxis2) shown.yaxis2 = {...layout.yaxis2, ...lines};
  if (traces.some(moves)) {
    xaxis.title = {...xaxis.title, text: axis.selectedOptions[0].text};
    xaxis.hoverformat = axis.value === "seconds" ? ",.1f" : ",.0f";
    shown.shapes = shown.annotations = [];  // they mark updates
  }
  xaxis.unifiedhovertitle = {text: title + ", " + xaxis.title.text + " %{x:" + (xaxis.hoverformat ?? "") + "}"};
  return [moved, shown];
}

function drawCharts() {
  data.figures.forEach((figure, i) => {
    const title = element("figure-" + i).getAttribute("aria-label");
    const [traces, layout] = prepared(figure, element("axis"), title);
    Plotly.react("figure-" + i, traces, layout, {responsive: true, displayModeBar: false});
  });
}

// A spreadsheet would run a text that begins like a formula, also with full-width signs or after white space.
const cell = (value) => typeof value === "number" ? value
  : '"' + (/^[\s=+\-@]/.test((value ?? "").normalize("NFKC")) ? "'" : "") + (value ?? "").replaceAll('"', '""') + '"';

function chartAsCsv(i) {
  const axis = element("axis"), [traces, layout] = prepared(data.figures[i], axis, "");
  const rows = traces.flatMap((trace) => {
    const {run, curve, window} = {run: "", curve: trace.name, window: 1, ...trace.meta};
    return trace.x.map((x, j) => [run, curve, window, x, trace.y[j]]).filter((row) => row[3] !== null);
  });
  return [["run", "curve", "mean over", layout.xaxis.title.text, "value"], ...rows]
    .map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function addDownloads() {
  data.figures.forEach((_, i) => {
    const title = element("figure-" + i).getAttribute("aria-label");
    const onclick = () => {
      const link = make("a", "", "", {href: URL.createObjectURL(new Blob([chartAsCsv(i)], {type: "text/csv"}))});
      link.download = title.toLowerCase().replaceAll(" ", "_") + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    };
    const button = make("button", "csv", "CSV", {type: "button", title: "Download the points of this chart", onclick});
    button.setAttribute("aria-label", "CSV of " + title);
    element("figure-" + i).before(button);
  });
}

drawCharts();
addDownloads();
darkScheme.onchange = drawCharts;
if (element("axis")) element("axis").onchange = drawCharts;
