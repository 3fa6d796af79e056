// The sample browser: pick steps, filter, search, walk with the keyboard. Model text only ever becomes text nodes.
'use strict';

const found = { step: null, kind: 'all', query: '', rows: [], at: 0 };
const KIND_NAMES = { all: 'all', right: 'right', wrong: 'wrong', truncated: 'truncated', error: 'failed' };
const { prompts, rows: allRows, steps: sampleSteps } = data.samples;
const strongest = Math.max(1, ...allRows.map((row) => Math.abs(row.advantage || 0)));

// Blue raises, orange lowers; the stronger the advantage the stronger the colour.
function tint(advantage) {
  if (!advantage) return {};
  const hue = advantage > 0 ? '--pos' : '--neg', share = Math.min(1, Math.abs(advantage) / strongest);
  const mix = (most) => `color-mix(in srgb, var(${hue}) ${Math.round(most * (0.25 + 0.75 * share))}%, transparent)`;
  return { '--edge': mix(100), '--wash': mix(22) };
}

function matches(row) {
  if (found.step !== null && row.step !== found.step) return false;
  if (!found.query) return true;
  const [id, prompt, answer] = prompts[row.prompt];
  return [row.text, prompt, answer, id, row.reason, row.error, row.statusReason, ...Object.values(row.told || {})].some((text) => text && text.toLowerCase().includes(found.query));
}

// The text with what was searched for marked, as nodes.
function marked(text) {
  if (!found.query || !text) return [text || ''];
  const lower = text.toLowerCase(), nodes = [];
  let from = 0;
  for (let i = lower.indexOf(found.query); i >= 0 && lower.length === text.length; i = lower.indexOf(found.query, from)) {
    nodes.push(text.slice(from, i), h('mark', {}, text.slice(i, i + found.query.length)));
    from = i + found.query.length;
  }
  return [...nodes, text.slice(from)];
}

function chip(label, count, pressed, act) {
  return h('button', { class: 'chip', type: 'button', 'aria-pressed': String(pressed), on: { click: act } }, label, count === null ? null : h('small', {}, String(count)));
}

const stepChips = h('div', { class: 'chips', role: 'group', 'aria-label': 'step' });
const kindChips = h('div', { class: 'chips', role: 'group', 'aria-label': 'kind' });
const search = h('input', { class: 'search', type: 'search', placeholder: 'Search prompts, completions, reasons …', 'aria-label': 'search samples',
  on: { input: () => { found.query = search.value.trim().toLowerCase(); refresh(); } } });
const list = h('ul', { class: 'list', role: 'listbox', tabindex: '0', 'aria-label': 'samples' });
const detail = h('div', { class: 'detail', 'aria-live': 'polite' });

function refresh() {
  const before = found.rows[found.at];
  const inStep = allRows.filter(matches);
  found.rows = inStep.filter((row) => found.kind === 'all' || row.kind === found.kind);
  found.at = Math.max(0, found.rows.indexOf(before));
  stepChips.replaceChildren(h('span', {}, 'step'), chip('all', null, found.step === null, () => pickStep(null)),
    ...sampleSteps.map((one) => chip(String(one.step), null, found.step === one.step, () => pickStep(one.step))));
  kindChips.replaceChildren(h('span', {}, 'show'), ...Object.entries(KIND_NAMES).map(([kind, name]) =>
    chip(name, kind === 'all' ? inStep.length : inStep.filter((row) => row.kind === kind).length, found.kind === kind, () => { found.kind = kind; refresh(); })));
  list.replaceChildren(...found.rows.map((row, i) => h('li', { role: 'option', id: `sample-${i}`, css: tint(row.advantage), on: { click: () => select(i) } },
    h('span', { class: 'num' }, row.score === undefined ? '–' : fmt(row.score)), h('span', { class: 'text' }, (row.text || '(empty)').slice(0, 160)),
    row.kind === 'right' || row.kind === 'wrong' ? h('span', { class: 'muted small' }, found.step === null ? `step ${row.step}` : '') : h('span', { class: `tag ${row.kind}` }, KIND_NAMES[row.kind]))));
  if (!found.rows.length) {
    list.removeAttribute('aria-activedescendant');
    list.append(h('li', { class: 'empty' }, 'nothing fits'));
    detail.replaceChildren(h('p', { class: 'empty' }, 'No embedded sample fits the step, the filter and the search.'));
  } else select(found.at);
}

function pickStep(step) {
  found.step = step;
  refresh();
  for (const one of stepChips.querySelectorAll('[aria-pressed="true"]')) stepChips.scrollLeft = one.offsetLeft - stepChips.clientWidth / 2;
}

function select(i) {
  found.at = i;
  for (const old of list.querySelectorAll('[aria-selected="true"]')) old.setAttribute('aria-selected', 'false');
  const item = list.children[i];
  item.setAttribute('aria-selected', 'true');
  list.setAttribute('aria-activedescendant', item.id);
  const above = item.offsetTop - list.offsetTop, below = above + item.offsetHeight;
  if (above < list.scrollTop) list.scrollTop = above;
  else if (below > list.scrollTop + list.clientHeight) list.scrollTop = below - list.clientHeight;
  show(found.rows[i]);
}

function siblings(row) {
  const group = allRows.filter((one) => one.step === row.step && one.prompt === row.prompt);
  if (group.length < 2) return [];
  return [h('h3', {}, `Its group (${group.length} samples: reward, coloured by advantage)`), h('div', { class: 'group' }, group.map((one) =>
    h('button', { type: 'button', css: tint(one.advantage), 'aria-current': one === row ? 'true' : 'false', on: { click: () => jump(one) } }, one.score === undefined ? '–' : fmt(one.score))))];
}

function jump(row) {
  if (!found.rows.includes(row)) { found.kind = 'all'; found.query = ''; search.value = ''; refresh(); }
  select(found.rows.indexOf(row));
}

function show(row) {
  const [id, prompt, answer, images] = prompts[row.prompt];
  const pictures = images.map((place, n) => (data.samples.images[place] ? h('img', { src: data.samples.images[place], alt: `image ${n + 1}` }) : h('span', { class: 'muted' }, '(image not on this page)')));
  const fact = (name, value) => h('span', {}, h('span', { class: 'muted' }, `${name} `), h('b', {}, value));
  const shown = (title, text, cls) => (text ? [h('h3', {}, title), h('pre', { class: cls, dir: 'auto' }, marked(text))] : []);
  detail.replaceChildren(
    h('div', { class: 'facts' }, h('span', { class: `tag ${row.kind}` }, KIND_NAMES[row.kind]), fact('reward', row.score === undefined ? 'none' : fmt(row.score)),
      fact('advantage', row.advantage === undefined ? 'none' : fmt(row.advantage)), Object.entries(row.parts || {}).map(([name, value]) => fact(name, fmt(value)))),
    ...shown('Prompt', prompt), ...(images.length ? [h('div', { class: 'images' }, pictures)] : []), ...shown('Expected answer', answer),
    h('h3', {}, 'Completion'), h('pre', { class: 'completion', dir: 'auto', css: tint(row.advantage) }, row.text ? marked(row.text) : h('span', { class: 'muted' }, '(empty)')),
    ...Object.entries(row.told || {}).flatMap(([name, text]) => shown(`${name[0].toUpperCase()}${name.slice(1)}`, text)),
    ...shown('Why this reward', row.reason), ...shown('Reward failed', row.error, 'problem'), ...shown('Rollout ended', row.statusReason, 'problem'), ...siblings(row),
    h('h3', {}, 'Details'), h('div', { class: 'facts small' }, fact('step', String(row.step)), fact('prompt', id), fact('sample', String(row.sample || 0)), fact('sampled tokens', String(row.tokens || 0)),
      row.logprob === undefined ? null : fact('mean log-prob', fmt(row.logprob)), fact('policy version', [...new Set(row.versions)].join(' to ')),
      ...(row.flags || []).map((flag) => h('span', { class: 'tag' }, flag))));
  detail.scrollTop = 0;
}

function move(by) {
  if (found.rows.length) select(Math.max(0, Math.min(found.rows.length - 1, found.at + by)));
}

function moveStep(by) {
  const order = [null, ...sampleSteps.map((one) => one.step)];
  pickStep(order[Math.max(0, Math.min(order.length - 1, order.indexOf(found.step) + by))]);
}

const browser = h('div', { class: 'card browser' }, h('div', { class: 'controls' }, stepChips, kindChips, search), h('div', { class: 'panes' }, list, detail));

// j, k and / work while the browser is on screen; arrows only when the focus is inside, so that they still scroll the page.
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === search) {
    if (event.key === 'Escape') { search.value = ''; found.query = ''; refresh(); }
    if (event.key === 'Escape' || event.key === 'Enter') list.focus();
    return;
  }
  const box = browser.getBoundingClientRect();
  if (box.bottom < 80 || box.top > innerHeight - 80) return;
  const inside = browser.contains(document.activeElement);
  const acts = { j: () => move(1), k: () => move(-1), '/': () => search.focus(),
    ...(inside ? { ArrowDown: () => move(1), ArrowUp: () => move(-1), ArrowRight: () => moveStep(1), ArrowLeft: () => moveStep(-1), Home: () => move(-Infinity), End: () => move(Infinity) } : {}) };
  if (Object.hasOwn(acts, event.key)) { event.preventDefault(); acts[event.key](); }
}

if (allRows.length) {
  place('sample-browser', browser);
  document.addEventListener('keydown', onKey);
  pickStep(sampleSteps[sampleSteps.length - 1].step);
} else place('sample-browser', h('p', { class: 'muted' }, 'No stored rollouts.'));
