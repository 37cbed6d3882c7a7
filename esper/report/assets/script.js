"use strict";
// Conveniences; the page says the same without them. Data are only ever put into the page as text.
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  // ---- A cursor over the curves, moved by pointer or by the slider --------------------------------------------
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const name = figure.dataset.chart;
    const data = JSON.parse(document.getElementById(`${name}-data`).textContent);
    const slider = document.getElementById(`${name}-step`);
    const read = document.getElementById(`${name}-read`);
    if (!data.steps.length) continue;
    slider.max = String(data.steps.length - 1);
    const places = ["wide", "narrow"].map((size) => {
      const svg = figure.querySelector(`.${size} svg`);
      const line = document.createElementNS(SVG, "line");
      line.setAttribute("class", "es-cursor");
      line.setAttribute("visibility", "hidden");
      svg.querySelector(".es-cursor-layer").append(line);
      return { svg, line, axis: data.axes[size] };
    });

    const show = (at, seen) => {
      const step = data.steps[at];
      slider.value = String(at);
      for (const { line, axis } of places) {
        const [left, right, top, bottom] = axis;
        const x = left + ((right - left) * step) / Math.max(1, data.last);
        for (const [key, value] of Object.entries({ x1: x, x2: x, y1: top, y2: bottom })) line.setAttribute(key, value);
        line.setAttribute("visibility", seen ? "visible" : "hidden");
      }
      read.replaceChildren(item("step", step.toLocaleString("en")));
      for (const series of data.series) if (series.values[at]) read.append(item(series.label, series.values[at]));
      const next = at + 1 < data.steps.length ? data.steps[at + 1] : Infinity;
      for (const [when, said] of data.marks) if (when >= step && when < next) read.append(item("event", said));
      slider.setAttribute("aria-valuetext", read.textContent);
    };
    const item = (label, value) => {
      const made = document.createElement("b");
      const small = document.createElement("span");
      small.textContent = `${label} `;
      made.append(small, value);
      return made;
    };
    const nearest = (step) => {
      let best = 0;
      data.steps.forEach((known, at) => {
        if (Math.abs(known - step) < Math.abs(data.steps[best] - step)) best = at;
      });
      return best;
    };

    slider.addEventListener("input", () => show(Number(slider.value), true));
    slider.addEventListener("focus", () => show(Number(slider.value), true));
    for (const { svg, axis } of places) {
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const x = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
        show(nearest(((x - axis[0]) / (axis[1] - axis[0])) * data.last), true);
      });
    }
    figure.querySelector(".readout").hidden = false;
    show(data.steps.length - 1, false);
  }

  // ---- What need not scroll is no stop for the keyboard ----------------------------------------------------------
  const watch = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
      if (scrolls) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const region of document.querySelectorAll(".scroll")) watch.observe(region);

  // ---- Decisions by kind and by text ---------------------------------------------------------------------------
  for (const filter of document.querySelectorAll(".filter")) {
    const kind = filter.querySelector("[data-kind]");
    const text = filter.querySelector("[data-text]");
    const count = filter.querySelector("output");
    const rows = [...filter.closest("section").querySelectorAll("tbody tr")];
    const apply = () => {
      const wanted = text.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        const fits = (!kind.value || row.dataset.event === kind.value) && row.textContent.toLowerCase().includes(wanted);
        row.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      count.textContent = shown === rows.length ? `${rows.length} decisions` : `${shown} of ${rows.length} decisions`;
    };
    kind.addEventListener("change", apply);
    text.addEventListener("input", apply);
    filter.hidden = false;
    apply();
  }
})();
