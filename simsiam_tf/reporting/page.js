// Draws the charts of the page again, so that they answer: values on hover, zoom, smoothing, a
// logarithmic axis, and the neighbours of an image that is clicked on the map. Without this script
// the page has the same charts as pictures, and everything else.
"use strict";

const options = { ast: true, actions: false, renderer: "svg" };
const charts = [...document.querySelectorAll(".chart")].map((element) => ({
  element,
  spec: JSON.parse(element.nextElementSibling.textContent),
  map: element.closest(".map"),
}));

// A weighted mean of the values so far, as TensorBoard's, for each run by itself.
function smoothed(rows, weight) {
  const states = {};
  return rows.map((row) => {
    const state = (states[row.run] ??= { sum: 0, weights: 0 });
    state.sum = weight * state.sum + (1 - weight) * row.value;
    state.weights = weight * state.weights + (1 - weight);
    return { ...row, shown: state.sum / state.weights };
  });
}

function curves(chart, settings) {
  const spec = structuredClone(chart.spec);
  const values = spec.layer.find((layer) => layer.name === "values");
  const rows = spec.data.values;
  spec.data.values = smoothed(rows, settings.smoothing);
  for (const layer of spec.layer) {
    if (!layer.data) layer.encoding.y = { ...spec.encoding.y, field: "shown" };
  }
  if (settings.smoothing > 0) {
    values.encoding.tooltip.push({ field: "shown", type: "quantitative", format: ".4~g", title: "smoothed" });
    values.mark.opacity = 0;
  }
  if (settings.log && rows.every((row) => row.value > 0)) {
    const scale = { type: "log", nice: true };
    spec.encoding.y.scale = scale;
    for (const layer of spec.layer) if (layer.encoding.y) layer.encoding.y.scale = scale;
    for (const layer of spec.layer) layer.mark.clip = true;
  }
  const resting = values.mark.opacity;
  delete values.mark.opacity;
  values.encoding.opacity = { condition: { param: "near", empty: false, value: 1 }, value: resting };
  values.encoding.size = { condition: { param: "near", empty: false, value: 70 }, value: 22 };
  values.params = [
    { name: "near", select: { type: "point", nearest: true, on: "pointerover", clear: "pointerout" } },
    { name: "zoom", select: { type: "interval", zoom: "wheel![event.shiftKey]" }, bind: "scales" },
  ];
  return spec;
}

function map(chart) {
  const spec = structuredClone(chart.spec);
  const ring = { condition: { test: "indexof(near, datum.index) >= 0", value: "var(--ink)" }, value: null };
  spec.params = [
    { name: "near", value: [] },
    { name: "zoom", select: { type: "interval", zoom: "wheel![event.shiftKey]" }, bind: "scales" },
  ];
  spec.encoding.stroke = ring;
  spec.encoding.strokeWidth = { value: 2.5 };
  return spec;
}

// Shows the picture of an image and those of its neighbours, and marks them on the map.
function choose(chart, chosen, view) {
  const rows = new Map(chart.spec.data.values.map((row) => [row.index, row]));
  const list = chart.map.querySelector(".chosen");
  list.replaceChildren(
    ...[[chosen.index, null], ...chosen.near].map(([index, cosine]) => {
      const row = rows.get(index);
      const figure = document.createElement("figure");
      const image = document.createElement("img");
      const caption = document.createElement("figcaption");
      image.src = row.image;
      image.alt = row.class || "an image";
      image.className = !row.class || row.class === chosen.class ? "small" : "small other";
      caption.textContent = [row.class, cosine?.toFixed(2)].filter(Boolean).join(" · ");
      figure.append(image, caption);
      return figure;
    }),
  );
  view.signal("near", [chosen.index, ...chosen.near.map(([index]) => index)]).run();
}

async function draw(chart, settings) {
  const isMap = chart.map !== null;
  const isCurves = chart.spec.layer?.some((layer) => layer.name === "values") ?? false;
  const spec = isMap ? map(chart) : isCurves ? curves(chart, settings) : structuredClone(chart.spec);
  spec.width = "container";
  spec.autosize = { type: "fit-x", contains: "padding" };
  chart.view?.finalize();
  const { view } = await vegaEmbed(chart.element, spec, options);
  chart.view = view;
  if (isMap) {
    view.addEventListener("click", (event, item) => item?.datum?.near && choose(chart, item.datum, view));
  }
  if (isMap || isCurves) view.addEventListener("dblclick", () => draw(chart, settings));
}

const controls = document.querySelector(".controls");
function drawAll() {
  const settings = {
    smoothing: Number(controls?.querySelector("[name=smoothing]").value ?? 0),
    log: controls?.querySelector("[name=log]").checked ?? false,
  };
  return Promise.all(charts.map((chart) => draw(chart, settings)));
}
if (controls) {
  controls.hidden = false;
  controls.addEventListener("change", drawAll);
}
document.querySelectorAll(".with-script").forEach((element) => (element.hidden = false));
drawAll().then(() => document.documentElement.classList.add("drawn"));
