// Small SVG charts: lines with bands, dots, stacked bars. No library, no network; colours are CSS variables, so that
// light and dark mode need no redraw. All text goes through text nodes.
'use strict';

const SVG = 'http://www.w3.org/2000/svg';

function put(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key === 'on') for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (key === 'css') for (const [name, v] of Object.entries(value)) node.style.setProperty(name, v);
    else node.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}
const h = (tag, attributes, ...children) => put(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => put(document.createElementNS(SVG, tag), attributes, children);

function fmt(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return Number(value.toPrecision(3)).toExponential().replace('+', '');
  return size >= 100 ? value.toLocaleString('en', { maximumFractionDigits: 1 }) : String(Number(value.toPrecision(4)));
}
const percent = (value) => (value === null || value === undefined ? '–' : `${Number((100 * value).toFixed(1))}%`);

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function range(values, fallback) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null && v !== undefined) { if (v < low) low = v; if (v > high) high = v; }
  return low > high ? fallback : [low, high];
}

// Triangular average over `radius` steps to both sides: no lag. Gaps stay gaps and weigh nothing.
function smooth(values, radius) {
  return values.map((here, i) => {
    if (here === null) return null;
    let sum = 0, mass = 0;
    for (let k = Math.max(0, i - radius); k <= Math.min(values.length - 1, i + radius); k += 1) {
      if (values[k] === null) continue;
      const weight = radius + 1 - Math.abs(k - i);
      sum += weight * values[k];
      mass += weight;
    }
    return sum / mass;
  });
}

// A noisy curve as a faint one of each step and a strong smoothed one; a short curve as it is.
function noisy(series, from) {
  const long = (one) => one.y.filter((v) => v !== null).length >= from;
  const name = (one, what) => (series.length > 1 ? `${one.name}, ${what}` : what);
  return series.flatMap((one) => (!long(one) ? [one] : [
    { ...one, name: name(one, 'each step'), faint: true, opacity: one.y.length > 300 ? 0.22 : 0.4, unlisted: series.length > 1 },
    { ...one, name: name(one, 'smoothed'), y: smooth(one.y, Math.max(2, Math.round(one.y.length / 30))) }]));
}

function linePath(x, y, px, py) {
  let path = '', pen = false;
  x.forEach((at, i) => {
    if (y[i] === null || y[i] === undefined) { pen = false; return; }
    path += `${pen ? 'L' : 'M'}${px(at).toFixed(1)} ${py(y[i]).toFixed(1)}`;
    pen = true;
  });
  return path;
}

function bandPath(x, low, high, px, py) {
  const known = x.map((at, i) => i).filter((i) => low[i] !== null && high[i] !== null);
  if (known.length < 2) return '';
  const point = (i, y) => `${px(x[i]).toFixed(1)} ${py(y[i]).toFixed(1)}`;
  return `M${known.map((i) => point(i, high)).join('L')}L${known.reverse().map((i) => point(i, low)).join('L')}Z`;
}

const WIDE = { left: 48, right: 14, top: 10, bottom: 22 };
const cursors = [];

// spec: {title, hint, x, series: [{name, color, opacity, y, low, high, dots, faint}], stack, format, tick, min, max, xName}
function chart(spec) {
  const root = h('figure', { class: 'card chart', css: { margin: '0' } }, h('h3', {}, spec.title));
  if (spec.hint) root.append(h('p', { class: 'hint' }, spec.hint));
  if (spec.series.length > 1 || spec.stack) root.append(h('div', { class: 'legend' }, spec.series.filter((one) => !one.unlisted).map((one) =>
    h('span', {}, h('i', { css: { '--k': `var(--${one.color})`, '--o': one.opacity || 1 } }), one.name))));
  const drawing = s('svg', { height: 200, role: 'img', 'aria-label': describe(spec) });
  root.append(drawing);
  let width = 0;
  new ResizeObserver(() => {
    if (drawing.clientWidth && drawing.clientWidth !== width) { width = drawing.clientWidth; draw(root, drawing, spec, width); }
  }).observe(root);
  return root;
}

function describe(spec) {
  const ends = spec.series.map((one) => {
    const known = one.y.filter((v) => v !== null);
    return known.length ? `${one.name} from ${fmt(known[0])} to ${fmt(known[known.length - 1])}` : `${one.name} none`;
  });
  return `${spec.title}: ${ends.join('; ')}`;
}

function draw(root, drawing, spec, width) {
  const height = 200, { left, right, top, bottom } = WIDE, format = spec.format || fmt;
  const stacked = spec.stack ? stackUp(spec) : null;
  const all = stacked ? [0, ...stacked[stacked.length - 1].top] : spec.series.flatMap((one) => [...one.y, ...(one.low || []), ...(one.high || [])]);
  let [low, high] = range(all, [0, 1]);
  low = spec.min !== undefined ? Math.min(spec.min, low) : low;
  high = spec.max !== undefined ? spec.max : high;
  if (high - low < 1e-12) { const pad = Math.abs(high) * 0.1 || 0.5; low -= spec.min === undefined ? pad : 0; high += pad; }
  else { const pad = (high - low) * 0.06; if (spec.min === undefined) low -= pad; if (spec.max === undefined) high += pad; }
  let [first, last] = range(spec.span || spec.x, [0, 1]);
  const gap = spec.x.length > 1 ? (last - first) / (spec.x.length - 1) : 1;
  if (stacked || first === last) { first -= gap / 2; last += gap / 2; }
  const px = (v) => left + ((v - first) / (last - first)) * (width - left - right);
  const py = (v) => top + ((high - v) / (high - low)) * (height - top - bottom);
  drawing.replaceChildren();
  drawing.setAttribute('viewBox', `0 0 ${width} ${height}`);
  for (const v of ticks(low, high, 5)) {
    drawing.append(s('line', { class: 'grid', x1: left, x2: width - right, y1: py(v), y2: py(v) }));
    drawing.append(s('text', { x: left - 7, y: py(v) + 4, 'text-anchor': 'end' }, (spec.tick || format)(v)));
  }
  for (const v of ticks(first, last, Math.max(2, Math.min(8, width / 90))).filter(Number.isInteger)) {
    drawing.append(s('text', { x: px(v), y: height - 5, 'text-anchor': 'middle' }, String(v)));
  }
  if (stacked) stacked.forEach((one, k) => drawing.append(bars(spec, one, k, px, py, gap)));
  else spec.series.forEach((one) => drawing.append(...marks(spec.x, one, px, py)));
  follow(root, drawing, spec, { px, format, top, base: height - bottom, width });
}

function stackUp(spec) {
  let base = spec.x.map(() => 0);
  return spec.series.map((one) => {
    const top = base.map((v, i) => v + (one.y[i] || 0));
    const layer = { base, top };
    base = top;
    return layer;
  });
}

function bars(spec, layer, k, px, py, gap) {
  const full = Math.abs(px(gap) - px(0)), bar = Math.max(0.8, full > 6 ? full - 1.5 : full + 0.3);
  const path = spec.x.map((at, i) => (layer.top[i] > layer.base[i]
    ? `M${(px(at) - bar / 2).toFixed(1)} ${py(layer.base[i]).toFixed(1)}V${py(layer.top[i]).toFixed(1)}h${bar.toFixed(1)}V${py(layer.base[i]).toFixed(1)}Z` : '')).join('');
  const { color, opacity } = spec.series[k];
  return s('path', { d: path, fill: `var(--${color})`, 'fill-opacity': opacity || 1 });
}

function marks(x, one, px, py) {
  const stroke = `var(--${one.color})`, drawn = [];
  if (one.low) {
    drawn.push(s('path', { d: bandPath(x, one.low, one.high, px, py), fill: stroke, 'fill-opacity': one.bandOpacity || 0.17 }));
  }
  if (!one.bandOnly) {
    drawn.push(s('path', { d: linePath(x, one.y, px, py), fill: 'none', stroke, 'stroke-width': one.faint ? 1 : 2,
      'stroke-opacity': one.opacity || 1, 'stroke-linejoin': 'round', 'stroke-linecap': 'round', 'stroke-dasharray': one.dash }));
  }
  const known = x.map((at, i) => i).filter((i) => one.y[i] !== null && one.y[i] !== undefined);
  if (one.dots || known.length === 1) for (const i of known) {
    if (one.low && one.low[i] !== null && one.high[i] !== null) {
      drawn.push(s('line', { x1: px(x[i]), x2: px(x[i]), y1: py(one.low[i]), y2: py(one.high[i]), stroke, 'stroke-opacity': 0.55, 'stroke-width': 1.5 }));
    }
    drawn.push(s('circle', { cx: px(x[i]), cy: py(one.y[i]), r: known.length > 60 ? 2 : 3.5, fill: stroke }));
  }
  return drawn;
}

// The value under the pointer, and the same step marked in every other chart.
function follow(root, drawing, spec, { px, format, top, base, width }) {
  const line = s('line', { class: 'cursor', y1: top, y2: base, visibility: 'hidden' });
  const tip = root.querySelector('.tip') || root.appendChild(h('div', { class: 'tip', hidden: '' }));
  drawing.append(line);
  const mine = { root, shared: !spec.xName, mark(step) {
    const [first, last] = range(spec.x, [0, 0]), inside = step !== null && step >= first && step <= last;
    line.setAttribute('visibility', inside ? 'visible' : 'hidden');
    if (inside) { line.setAttribute('x1', px(step)); line.setAttribute('x2', px(step)); }
  } };
  const old = cursors.findIndex((one) => one.root === root);
  if (old >= 0) cursors.splice(old, 1);
  cursors.push(mine);
  const point = (step) => (mine.shared ? cursors.filter((one) => one.shared) : [mine]).forEach((one) => one.mark(step));
  drawing.onpointermove = (event) => {
    const at = event.clientX - drawing.getBoundingClientRect().left;
    let best = 0;
    spec.x.forEach((v, i) => { if (Math.abs(px(v) - at) < Math.abs(px(spec.x[best]) - at)) best = i; });
    if (!spec.x.length) return;
    point(spec.x[best]);
    const rows = spec.series.filter((one) => one.y[best] !== null && one.y[best] !== undefined && !one.silent);
    tip.replaceChildren(h('div', {}, `${spec.xName || 'step'} ${spec.x[best]}`), ...rows.map((one) => h('div', {},
      h('i', { css: { '--k': `var(--${one.color})`, '--o': one.opacity || 1 } }), `${one.name} ${format(one.y[best])}`,
      one.low && one.low[best] !== null ? ` [${format(one.low[best])}, ${format(one.high[best])}]` : '')));
    tip.hidden = false;
    if (px(spec.x[best]) > width / 2) { tip.style.left = 'auto'; tip.style.right = `${root.clientWidth - px(spec.x[best]) - 2}px`; }
    else { tip.style.right = 'auto'; tip.style.left = `${px(spec.x[best]) + 28}px`; }
    tip.style.top = `${drawing.getBoundingClientRect().top - root.getBoundingClientRect().top + 6}px`;
  };
  drawing.onpointerleave = () => { tip.hidden = true; point(null); };
}

function sparkline(steps, values) {
  const every = Math.ceil(steps.length / 120), keep = (_, i) => i % every === 0;
  const x = steps.filter(keep), y = every > 1 ? smooth(values, every).filter(keep) : values;
  const [low, high] = range(y, [0, 1]), [first, last] = range(x, [0, 1]);
  const px = (v) => 2 + ((v - first) / (last - first || 1)) * 126;
  const py = (v) => (high > low ? 21 - ((v - low) / (high - low)) * 18 : 12);
  return s('svg', { viewBox: '0 0 130 24', 'aria-hidden': 'true' },
    s('path', { d: linePath(x, y, px, py), fill: 'none', stroke: 'var(--c1)', 'stroke-width': 1.3, 'stroke-linejoin': 'round' }));
}
