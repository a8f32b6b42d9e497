"use strict";
const report = JSON.parse(document.getElementById("report").textContent);
const maps = JSON.parse(document.getElementById("maps").textContent);
const photo = JSON.parse(document.getElementById("photo").textContent);
const COLOURS = ["#2f74d0", "#d9600f", "#23995a", "#9557d6", "#cf3a6b", "#0e9494", "#b58a10", "#7d8794", "#8a5a3c", "#5f7df0",
  "#79a51f", "#d070b8", "#46a3d8", "#c4493b"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star", "hexagon", "pentagon"];
const TITLES = {qkv: "Attention over queries, keys and values", vectors: "Layers on a sequence of vectors", map: "Layers on feature maps"};
const dark = matchMedia("(prefers-color-scheme: dark)");

headline();
report.panels.forEach(showPanel);
if (report.sweeps.length) showSweeps();
notes();

function headline() {
  const [first, ...others] = report.panels.filter((panel) => panel.answer.length).map((panel) => panel.answer[0]);
  document.getElementById("headline").textContent = unbroken(first ?? "Nothing could be compared");
  document.getElementById("more").append(...others.map((answer) => make("p", {}, unbroken(answer))));
  const {machine, settings, versions} = report;
  if (machine.load > 0.5 * machine.cores) document.getElementById("more").append(make("p", {class: "warning"},
    `The machine was busy when this began (load ${machine.load} on ${machine.cores} cores): times may mislead.`));
  const facts = {Processor: `${machine.processor} (${machine.instruction_set})`, Threads: `${machine.threads} on ${machine.cores} cores`, Numbers: settings.dtype,
    Rounds: settings.rounds, Seed: settings.seed, Software: `foveate ${versions.foveate}, torch ${versions.torch}`,
    Measured: report.created.replace("T", " ").replace("+00:00", " UTC")};
  document.getElementById("facts").append(...Object.entries(facts).map(([name, fact]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, String(fact)))));
}

function showPanel(panel) {
  const trained = panel.results.some((result) => result.points.some((point) => point.training));
  const measured = panel.results.map((result) => result.points.map((point) => point.length)).flat();
  const view = {length: Math.max(...measured), mode: "forward", hidden: new Set(), sort: {column: 1, up: true}};
  panel.results.forEach((result, index) => {
    result.base = result.name === panel.baseline;
    result.colour = COLOURS[index % COLOURS.length];
    result.symbol = SYMBOLS[index % SYMBOLS.length];
  });
  const body = make("section", {}, make("h2", {}, TITLES[panel.kind]), make("p", {class: "soft"}, `Input: ${panel.subject}, ${panel.description}.`),
    ...panel.answer.slice(1).map((sentence) => make("p", {class: "answer"}, unbroken(sentence))));
  document.getElementById("panels").append(body);
  if (!measured.length) return;

  const table = make("div", {class: "table", tabindex: 0, role: "region", "aria-label": "Results"});
  const charts = make("div", {class: "charts"});
  const controls = make("div", {class: "bar"}, choice("N", panel.lengths, view.length, (length) => { view.length = length; draw(); }));
  if (trained) controls.append(choice("Charts", ["forward", "forward + backward"], "forward", (name) => {
    view.mode = name === "forward" ? "forward" : "training"; draw(); }));
  body.append(controls, table, charts);
  const figures = [
    figure(charts, "Time against length", "Median of one call. In the legend, how time grows with N over the longest lengths.", timeChart),
    figure(charts, "Memory against length", "Most memory held at once beyond the inputs during one call, output included.", memoryChart)];
  if (panel.results.some((result) => result.points.some((point) => point.error))) figures.push(
    figure(charts, "Time as a share of exact attention", "Where a line falls below 1 the mechanism starts to pay. In the legend, that length.", ratioChart),
    figure(charts, "Error against time", "Relative distance from exact attention at the chosen N. Down and to the left is better.", errorChart));
  const draw = () => { table.replaceChildren(resultTable(panel, view, draw)); figures.forEach((show) => show(panel, view, draw)); };
  draw();
  dark.addEventListener("change", draw);
  if (panel.kind === "qkv" && maps) showMaps(charts, panel);
  if (panel.kind === "map" && photo) showPhoto(charts, panel);
}

// --- the table ---------------------------------------------------------------------------------------------------------------

function columns(panel) {
  const dense = panel.kind === "qkv" ? "exact" : "dense";
  const has = (test) => panel.results.some((result) => result.points.some(test));
  const timed = (mode, name) => [
    {head: `${name}\nms`, value: (r, p) => p[mode]?.median_ms, show: (value, r, p) =>
      [number(value), make("small", {}, ` ± ${number((p[mode].high_ms - p[mode].low_ms) / 2, 1)}`)]},
    {head: `against\n${dense}`, value: (r, p) => p[mode]?.ratio, show: (value) => ratio(value)}];
  const all = [{head: "Mechanism\narXiv, claimed cost", value: (r) => r.name, show: (value, r) => value}, ...timed("forward", "forward")];
  if (has((point) => point.training)) all.push(...timed("training", "fwd + bwd"));
  all.push({head: "memory\nMB", value: (r, p) => (p.training_bytes ?? p.forward_bytes) / 1e6, show: (value) => number(value)});
  if (has((point) => point.error)) all.push(
    {head: "error", value: (r, p) => p.error?.relative, show: (value) => percent(value)},
    {head: "worst\nrow", value: (r, p) => p.error?.worst_row, show: (value) => percent(value)},
    {head: "cosine", value: (r, p) => p.error?.cosine, show: (value) => value.toFixed(3)});
  all.push(
    {head: "time\ngrows as", value: (r) => r.exponents.forward, show: (value) => power(value)},
    {head: "faster\nfrom", value: (r) => r.crossover && ({always: 0, never: 1e12}[r.crossover.kind] ?? r.crossover.length),
      show: (value, r) => fasterFrom(r)});
  return all;
}

function resultTable(panel, view, draw) {
  const all = columns(panel);
  const rows = panel.results.map((result) => [result, result.points.find((point) => point.length === view.length)]).filter(([, point]) => point);
  const {column, up} = view.sort;
  const key = ([result, point]) => all[column].value(result, point);
  rows.sort((a, b) => missing(key(a)) - missing(key(b)) || (up ? 1 : -1) * (typeof key(a) === "string" ? key(a).localeCompare(key(b)) : key(a) - key(b)));
  const heads = all.map((each, index) => {
    const sort = make("button", {type: "button", title: "Sort"}, each.head);
    sort.onclick = () => { view.sort = {column: index, up: index === column ? !up : true}; draw(); };
    return make("th", {scope: "col", ...(index === column && {"aria-sort": up ? "ascending" : "descending"})}, sort);
  });
  const cells = (result, point) => all.map((each, index) => {
    const value = each.value(result, point);
    if (index === 0) return make("th", {scope: "row", title: `${result.form} ${JSON.stringify(result.options)}`}, nameCell(result));
    return make("td", {}, ...(missing(value) ? [""] : [each.show(value, result, point)].flat()));
  });
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads)),
    make("tbody", {}, ...rows.map(([result, point]) => make("tr", {class: result.base ? "baseline" : ""}, ...cells(result, point)))));
}

function nameCell(result) {
  const origin = [result.paper, result.claimed_cost, result.untrained && "untrained"].filter(Boolean).join(" · ");
  return make("div", {class: "name"}, chip(result), make("span", {}, result.name, make("br"), make("small", {}, origin)));
}

// --- charts ------------------------------------------------------------------------------------------------------------------

function figure(parent, title, text, chart) {
  const area = make("div", {class: "chart"});
  const legend = make("div", {class: "legend"});
  parent.append(make("div", {class: "card"}, make("h3", {}, title), make("p", {class: "soft"}, text), area, legend));
  return (panel, view, draw) => {
    const {traces, layout, label} = chart(panel, view);
    Plotly.react(area, traces.filter((trace) => !view.hidden.has(trace.name)), framed(layout), {responsive: true, displaylogo: false, displayModeBar: false});
    legend.replaceChildren(...panel.results.filter((result) => traces.some((trace) => trace.name === result.name)).map((result) => {
      const entry = make("button", {type: "button", "aria-pressed": String(!view.hidden.has(result.name)), title: result.name},
        chip(result), make("span", {}, result.name), make("em", {}, label(result)));
      entry.onclick = () => { view.hidden.has(result.name) ? view.hidden.delete(result.name) : view.hidden.add(result.name); draw(); };
      return entry;
    }));
  };
}

function timeChart(panel, view) {
  const value = (point) => point[view.mode]?.median_ms;
  return lengthChart(panel, value, "time in ms", "ms", (result) => power(result.exponents[view.mode]));
}

function memoryChart(panel, view) {
  const value = (point) => (view.mode === "training" ? point.training_bytes : point.forward_bytes) / 1e6;
  return lengthChart(panel, value, "memory in MB", "MB", (result) => view.mode === "forward" ? power(result.exponents.memory) : "");
}

function ratioChart(panel, view) {
  const chart = lengthChart(panel, (point) => point[view.mode]?.ratio, "time / exact attention", "of exact attention",
    (result) => result.base || view.mode === "training" ? "" : fasterFrom(result));
  chart.layout.shapes = [{type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: {color: style("--ink"), width: 1, dash: "dash"}}];
  chart.traces = chart.traces.filter((trace) => trace.name !== panel.baseline);
  return chart;
}

function lengthChart(panel, value, title, unit, label) {
  const traces = panel.results.map((result) => {
    const points = result.points.filter((point) => value(point) > 0);
    return {...look(result, "lines+markers"), x: points.map((point) => point.length), y: points.map(value),
      hovertemplate: `<b>${result.name}</b><br>N = %{x}<br>%{y:.3g} ${unit}<extra></extra>`};
  }).filter((trace) => trace.x.length);
  return {traces, label, layout: {
    xaxis: {title: {text: "length N"}, type: "log", tickvals: panel.lengths, ticktext: panel.lengths.map(String)},
    yaxis: {title: {text: title}, ...logTicks(traces.flatMap((trace) => trace.y))}}};
}

function errorChart(panel, view) {
  const floor = 1e-4;  // errors below 0.01 % are rounding
  const traces = panel.results.flatMap((result) => {
    const point = result.points.find((each) => each.length === view.length);
    if (!point?.error || !point[view.mode]) return [];
    return [{...look(result, "markers"), x: [point[view.mode].median_ms], y: [100 * Math.max(point.error.relative, floor)],
      hovertemplate: `<b>${result.name}</b><br>%{x:.3g} ms<br>error ${percent(point.error.relative)}<extra></extra>`}];
  });
  traces.forEach((trace) => { trace.marker.size = 12; });
  const error = (result) => percent(result.points.find((each) => each.length === view.length)?.error?.relative);
  return {traces, label: error, layout: {
    xaxis: {title: {text: `time in ms at N = ${view.length}`}, ...logTicks(traces.flatMap((trace) => trace.x))},
    yaxis: {title: {text: "relative error in %"}, type: "log", range: [-2.25, Math.log10(Math.max(150, ...traces.flatMap((trace) => trace.y)) * 1.3)],
      tickvals: [0.01, 0.1, 1, 10, 100, 1000], ticktext: ["≤ 0.01", "0.1", "1", "10", "100", "1000"]}}};
}

function look(result, mode) {
  const colour = result.base ? style("--ink") : result.colour;
  return {name: result.name, mode, type: "scatter", line: {color: colour, width: result.base ? 3 : 1.8, dash: result.base ? "dash" : "solid"},
    marker: {color: colour, size: 7, symbol: result.base ? "circle" : result.symbol, line: {color: style("--card"), width: 1}}};
}

function framed(layout) {
  const axis = {gridcolor: style("--grid"), linecolor: style("--line"), zeroline: false, automargin: true, tickfont: {size: 11}};
  return {...layout, xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis}, showlegend: false, hovermode: "closest",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 56, r: 12, t: 8, b: 44}, dragmode: false,
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: style("--soft")},
    hoverlabel: {bgcolor: style("--card"), bordercolor: style("--line"), font: {color: style("--ink"), size: 12}}};
}

/** A logarithmic axis with few, plain numbers. */
function logTicks(values) {
  const low = Math.log10(Math.min(...values)), high = Math.log10(Math.max(...values)), room = Math.max(0.06 * (high - low), 0.1);
  const digits = high - low > 2.5 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let decade = Math.floor(low) - 1; decade <= high + 1; decade++) digits.forEach((digit) => ticks.push(digit * 10 ** decade));
  return {type: "log", range: [low - room, high + room], tickvals: ticks, ticktext: ticks.map((tick) => String(Number(tick.toPrecision(2))))};
}

// --- attention maps ----------------------------------------------------------------------------------------------------------

function showMaps(charts, panel) {
  const heads = (Object.values(maps.pictures)[0] ?? []).map((_, head) => head);
  pictures(charts, panel, maps.pictures, {title: "Who reads whom", options: ["Head", heads],
    text: `Weights over the first ${maps.positions} positions: each row is a query, each column a key, as bright as the weight. ` +
      "All maps of a head share one scale. Parameters that training would set are at their start.",
    draw: (name, head) => [make("img", {src: maps.pictures[name][head], alt: `Attention map of ${name}, head ${head}`})]});
}

function showPhoto(charts, panel) {
  const [height, width] = photo.grid;
  const frame = (name, pixel) => make("div", {class: "photo", style: `aspect-ratio: ${width} / ${height}`},
    make("img", {src: photo.photo, alt: ""}),
    make("img", {class: "over", src: photo.pictures[name][pixel], alt: `What the ${photo.pixels[pixel].name} pixel reads through ${name}`}),
    make("i", {style: `left: ${100 * photo.pixels[pixel].across}%; top: ${100 * photo.pixels[pixel].down}%`}));
  pictures(charts, panel, photo.pictures, {title: "What a pixel reads", options: ["Pixel", photo.pixels.map((pixel) => pixel.name)],
    text: `How much the output at the ringed pixel changes with the features at each other one, on a map of ${height} × ${width}, laid over the ` +
      "photo. Each picture has a scale of its own. Parameters are at their start; gates that start closed are opened.",
    draw: (name, pixel) => [frame(name, photo.pixels.findIndex((each) => each.name === pixel))]});
}

/** A card with a picture for each contestant, and a choice of what they show. */
function pictures(charts, panel, all, {title, text, options: [of, options], draw}) {
  const grid = make("div", {class: "maps"});
  const names = panel.results.map((result) => result.name).filter((name) => all[name]);
  if (!names.length) return;
  const show = (option) => grid.replaceChildren(...names.map((name) => make("figure", {class: name === panel.baseline ? "baseline" : ""},
    ...draw(name, option), make("figcaption", {}, name))));
  show(options[0]);
  charts.append(make("div", {class: "card", style: "grid-column: 1 / -1"}, make("h3", {}, title), make("p", {class: "soft"}, text),
    make("div", {class: "bar"}, choice(of, options, options[0], show), make("span", {class: "scale"}, "negative", make("i"), "strong")), grid));
}

// --- settings ----------------------------------------------------------------------------------------------------------------

function showSweeps() {
  const share = (error) => error < 1e-4 ? "< 0.01 %" : `${Number((100 * error).toPrecision(3))} %`;
  const rows = report.sweeps.map((swept) => make("tr", {}, make("th", {scope: "row"}, swept.name), make("td", {}, swept.setting),
    make("td", {}, swept.values.map((value, index) => `${value}: ${share(swept.errors[index])}`).join(", ")), make("td", {}, swept.against)));
  const head = make("thead", {}, make("tr", {}, ...["Mechanism", "Setting", "Error", "From"].map((name) => make("th", {scope: "col"}, name))));
  document.getElementById("panels").append(make("section", {}, make("h2", {}, "Error against what is spent"),
    make("p", {class: "soft"}, `Relative distance at N = ${report.sweeps[0].length}, one setting of each mechanism from cheap to dear.`),
    make("div", {class: "table", tabindex: 0, role: "region", "aria-label": "Settings"}, make("table", {}, head, make("tbody", {}, ...rows)))));
}

// --- notes -------------------------------------------------------------------------------------------------------------------

function notes() {
  const texts = ["Times are medians over rounds, ± half the distance between the quartiles; within a round all contestants run in turn in one process, in a new order each time, after a warm-up. " +
    "Ratios are medians of the ratios within rounds. Memory is the high-water mark of torch's CPU allocator. " +
    "Error is the Frobenius norm of the difference from exact attention in float64 over that of the exact output; the worst row is the worst single position. " +
    "Layers marked untrained have parameters at their random start, which training would set: their error is that of dropping them in as they are. " +
    "A length followed by a question mark lies beyond those measured, where the fitted lines meet. " +
    "Mechanisms that add positions or are trained to compute something else have no error."];
  report.panels.forEach((panel) => panel.dropped.forEach((each) => texts.push(`${each.name} at N = ${each.length} was not measured: ${each.why}.`)));
  if (report.not_compared.length) texts.push("Not compared: " + report.not_compared.map((each) => `${each.form} (${each.why})`).join(", ") + ".");
  document.getElementById("notes").append(make("h2", {}, "How this was measured"), ...texts.map((text) => make("p", {}, text)));
}

// --- small helpers -----------------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== "") element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function choice(title, options, chosen, pick) {
  const buttons = options.map((option) => {
    const button = make("button", {type: "button", "aria-pressed": String(option === chosen)}, String(option));
    button.onclick = () => { buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button))); pick(option); };
    return button;
  });
  return make("div", {class: "choice", role: "group", "aria-label": title}, make("span", {}, title), ...buttons);
}

function chip(result) { return make("span", {class: "key", style: `background:${result.base ? "var(--ink)" : result.colour}`}); }

function ratio(value) {
  const text = value < 0.0995 ? value.toFixed(3) : value < 9.95 ? value.toFixed(2) : value.toFixed(0);
  return make("span", {class: `pill ${value < 0.95 ? "good" : value > 1.05 ? "bad" : ""}`}, `${text} ×`);
}

function fasterFrom(result) {
  const {kind, length} = result.crossover;
  return {always: "every N", never: "never", measured: `N = ${length}`, extrapolated: `N ≈ ${length}?`}[kind];
}

function power(value) {
  if (missing(value)) return "";
  return make("span", {}, "N", make("sup", {}, value.toFixed(2)));
}

function percent(value) {
  if (missing(value)) return "";
  return value < 1e-4 ? "< 0.01 %" : `${number(100 * value)} %`;
}

function number(value, digits = 3) {
  if (value === 0) return "0";
  const plain = Number(value.toPrecision(digits));
  return plain >= 1000 ? String(Math.round(value)) : String(plain);
}

/** Keeps "N = 512" and "4 %" on one line. */
function unbroken(text) { return text.replace(/N = (\d)/g, "N\u00a0=\u00a0$1").replace(/ %/g, "\u00a0%"); }
function missing(value) { return value === undefined || value === null || Number.isNaN(value); }
function style(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }
