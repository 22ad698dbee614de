/* One bit under sliders: the surrogate, and what it does to the estimate. The same numbers as docs/draw_figures.py. */
"use strict";

(() => {
  const POINTS = 2000;
  const KNOBS = [
    { name: "theta", label: "θ = P(b = 1)", low: 0.05, high: 0.95, step: 0.01, value: 0.7 },
    { name: "target", label: "t", low: 0, high: 1, step: 0.01, value: 0.45 },
    { name: "eta", label: "scale η of the surrogate", low: 0, high: 2, step: 0.02, value: 1 },
    { name: "temperature", label: "temperature τ", low: 0.1, high: 5, step: 0.05, value: 0.5 },
    { name: "constant", label: "constant added to c", low: -0.5, high: 1, step: 0.005, value: 0 },
  ];
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));

  /** The estimate at the logit for uniform noise u, z and z~ coupled. */
  function estimate(k, u) {
    const z = Math.log(k.theta / (1 - k.theta)) + Math.log(u) - Math.log1p(-u);
    const b = z > 0 ? 1 : 0;
    const relaxed = sigmoid(z / k.temperature);
    const c = k.constant + k.eta * (relaxed - k.target) ** 2;
    const slope = (k.eta * 2 * (relaxed - k.target) * relaxed * (1 - relaxed)) / k.temperature;
    const moved = (b ? k.theta : 1 - k.theta) * (1 - Math.exp(-Math.abs(z)));
    return ((b - k.target) ** 2 - c) * (b - k.theta) + slope * (1 - moved);
  }

  function moments(k) {
    let sum = 0;
    let squares = 0;
    for (let i = 0; i < POINTS; i++) {
      const found = estimate(k, (i + 0.5) / POINTS);
      sum += found;
      squares += found * found;
    }
    const mean = sum / POINTS;
    return { mean, variance: Math.max(0, squares / POINTS - mean * mean) };
  }

  /** A path through points, in a box of 320 x 200. */
  function path(points, xs, ys) {
    const at = ([x, y]) =>
      `${(30 + ((x - xs[0]) / (xs[1] - xs[0])) * 280).toFixed(1)},${(180 - ((y - ys[0]) / (ys[1] - ys[0])) * 165).toFixed(1)}`;
    return points.map((point, i) => (i ? "L" : "M") + at(point)).join("");
  }

  const range = (low, high, count) => Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));

  function panel(title, ys, xs, paths, labels) {
    const axes = `<path class="axis" d="M30,15V180H310"/><text x="30" y="196">${xs[0]}</text><text x="310" y="196" text-anchor="end">${xs[1]}</text>
      <text x="26" y="22" text-anchor="end">${ys[1].toFixed(2)}</text><text x="26" y="180" text-anchor="end">${ys[0].toFixed(2)}</text>`;
    const keys = labels.map(([name, style], i) => `<text class="key ${style}" x="40" y="${26 + 14 * i}">${name}</text>`).join("");
    return `<svg viewBox="0 0 320 204" role="img" aria-label="${title}"><title>${title}</title>${axes}${paths}${keys}</svg>`;
  }

  function draw(k) {
    const zs = range(-6, 6, 241);
    const logit = Math.log(k.theta / (1 - k.theta));
    const f = (z) => ((z > 0 ? 1 : 0) - k.target) ** 2;
    const c = (z) => k.constant + k.eta * (sigmoid(z / k.temperature) - k.target) ** 2;
    const all = [...zs.map(f), ...zs.map(c), 0];
    const ys = [Math.min(...all), Math.max(...all) * 1.1 + 0.01];
    const density = (z) => sigmoid(z - logit) * sigmoid(logit - z) * 4 * 0.4 * (ys[1] - ys[0]) + ys[0];
    const left = panel("The cost f(H(z)), the surrogate c(z) and the density of z", ys, [-6, 6],
      `<path class="density" d="${path(zs.map((z) => [z, density(z)]), [-6, 6], ys)}"/>
       <path class="truth" d="${path(zs.map((z) => [z, f(z)]), [-6, 6], ys)}"/>
       <path class="ours" d="${path(zs.map((z) => [z, c(z)]), [-6, 6], ys)}"/>`,
      [["f(H(z))", "truth"], ["c(z)", "ours"], ["p(z), height not to scale", "density"]]);
    const us = range(0.002, 0.998, 400);
    const plain = { ...k, eta: 0, constant: 0 };
    const both = [...us.map((u) => estimate(plain, u)), ...us.map((u) => estimate(k, u))];
    const es = [Math.min(...both, -0.05), Math.max(...both, 0.05)];
    const truth = (1 - 2 * k.target) * k.theta * (1 - k.theta);
    const right = panel("The estimate against the noise u, without and with the surrogate", es, [0, 1],
      `<path class="density" d="${path([[0, truth], [1, truth]], [0, 1], es)}"/>
       <path class="plain" d="${path(us.map((u) => [u, estimate(plain, u)]), [0, 1], es)}"/>
       <path class="ours" d="${path(us.map((u) => [u, estimate(k, u)]), [0, 1], es)}"/>`,
      [["REINFORCE", "plain"], ["with c", "ours"], ["true gradient", "density"]]);
    const [without, ours] = [moments(plain), moments(k)];
    const best = (1 - k.theta) * (1 - k.target) ** 2 + k.theta * k.target ** 2;
    const rows = [["true gradient", truth.toFixed(5), ""], ["REINFORCE", without.mean.toFixed(5), without.variance.toFixed(5)],
      ["with c", ours.mean.toFixed(5), ours.variance.toFixed(5)]];
    return `<div class="panels">${left}${right}</div>
      <table><thead><tr><th></th><th>mean</th><th>variance</th></tr></thead><tbody>${rows
        .map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join("")}</tr>`).join("")}</tbody></table>
      <p>The constant that leaves no variance at η = 0: ${best.toFixed(3)}.</p>`;
  }

  function build(root) {
    const values = Object.fromEntries(KNOBS.map((knob) => [knob.name, knob.value]));
    root.innerHTML = `<div class="knobs">${KNOBS.map((knob) => `<label>${knob.label}: <output>${knob.value}</output>
      <input type="range" name="${knob.name}" min="${knob.low}" max="${knob.high}" step="${knob.step}" value="${knob.value}"></label>`).join("")}</div>
      <div class="drawn"></div>`;
    const drawn = root.querySelector(".drawn");
    drawn.innerHTML = draw(values);
    root.addEventListener("input", ({ target }) => {
      values[target.name] = Number(target.value);
      target.closest("label").querySelector("output").textContent = target.value;
      drawn.innerHTML = draw(values);
    });
  }

  if (typeof document === "undefined") module.exports = { estimate, moments };
  else document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".relax-explorer").forEach(build));
})();
