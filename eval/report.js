// The charts and the browser of questions. Text of models and data only ever becomes text nodes.
'use strict';

const tasks = JSON.parse(document.getElementById('data').textContent);
const place = (id, ...nodes) => document.getElementById(id).append(...nodes);
const label = (one) => (new Set(tasks.map((t) => t.model)).size > 1 ? `${one.task} · ${one.model}` : one.task);
const NAMES = { 'pass@': 'pass@k: any right', 'maj@': 'maj@k: vote right', 'pass^': 'pass^k: all right' };
const COLOURS = { 'pass@': 'c1', 'maj@': 'c3', 'pass^': 'c2' };

function curveChart(one) {
  const names = Object.keys(one.curves);
  if (!names.length) return [];
  const x = [...new Set(names.flatMap((name) => one.curves[name].map((p) => p.k)))].sort((a, b) => a - b);
  const at = (name, key) => x.map((k) => { const p = one.curves[name].find((q) => q.k === k); return p ? p[key] : null; });
  return [chart({ title: label(one), hint: 'score against samples per question, with 95 % intervals', x, xName: 'k =', min: 0, max: 1, format: percent,
    series: names.map((name) => ({ name: NAMES[name], color: COLOURS[name], y: at(name, 'y'), low: at(name, 'low'), high: at(name, 'high'), dots: true, bandOpacity: 0.1 })) })];
}

// What choosing among samples gains: every strategy against the samples it spends, beside picking blindly and an oracle.
function strategyChart(one) {
  if (!one.strategies.length || one.strategies[0].points.length < 2) return [];
  const x = one.strategies[0].points.map((p) => p.k);
  const oracle = one.curves['pass@'] || [], at = (points, key) => x.map((k) => { const p = points.find((q) => q.k === k); return p ? p[key] : null; });
  const title = (entry) => entry.strategy.replaceAll('_', ' ') + (entry.scorer ? ` · ${entry.scorer}` : '');
  const series = one.strategies.map((entry, i) => ({ name: title(entry), color: ['c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7'][i % 7], y: at(entry.points, 'y'), dots: true }));
  if (oracle.length) series.push({ name: 'an oracle (pass@k)', color: 'c8', y: at(oracle, 'y'), faint: true, dash: '3 3' });
  const tokens = one.strategies[0].points.at(-1).tokens;
  return [chart({ title: `${label(one)}: choosing among samples`, hint: `score of one answer a question, by samples spent on it (${fmt(Math.round(tokens))} tokens for ${x.at(-1)})`, x, xName: 'samples:', min: 0, max: 1, format: percent, series })];
}

// Checkpoints of one run on one task: the learning curve.
function learningCharts() {
  const runs = new Map();
  for (const one of tasks) if (one.series !== null && one.step !== null) {
    const key = `${one.task} · ${one.series}`;
    runs.set(key, [...(runs.get(key) || []), one]);
  }
  return [...runs].filter(([, points]) => points.length > 1).map(([title, points]) => {
    points.sort((a, b) => a.step - b.step);
    const k = Math.max(...points[0].curves['pass@']?.map((p) => p.k) ?? [1]);
    const series = [{ name: 'score', color: 'c1', y: points.map((p) => p.score.y), low: points.map((p) => p.score.low), high: points.map((p) => p.score.high), dots: true }];
    for (const [name, color] of k > 1 ? [['pass@', 'c3'], ['maj@', 'c2']] : []) {
      const y = points.map((p) => p.curves[name]?.find((q) => q.k === k)?.y ?? null);
      if (y.some((v) => v !== null)) series.push({ name: `${name}${k}`, color, y, dots: true });
    }
    return chart({ title, hint: 'checkpoints of the run, with 95 % intervals of the score', x: points.map((p) => p.step), xName: 'step', min: 0, format: percent, series });
  });
}

function lengthChart(one) {
  if (one.lengths.length < 3) return [];
  return [chart({ title: `${label(one)}: score against length`, hint: 'share of right samples by completion length, in bins of equally many samples', x: one.lengths.map((b) => b.tokens), xName: 'about tokens:', min: 0, max: 1,
    format: percent, series: [{ name: 'right', color: 'c4', y: one.lengths.map((b) => b.right), dots: true }] })];
}

function categoryChart(one, column, parts) {
  const rows = parts.flatMap((part) => {
    const low = part.low === null ? part.y : part.low, high = part.high === null ? part.y : part.high;
    const css = { '--y': `${100 * part.y}%`, '--low': `${100 * low}%`, '--width': `${100 * (high - low)}%` };
    return [h('span', { class: 'name', title: part.value }, part.value || '(none)'),
      h('div', { class: 'track', css, role: 'img', 'aria-label': `${part.value}: ${percent(part.y)}, from ${percent(low)} to ${percent(high)}` }, h('div', { class: 'fill' }), h('div', { class: 'range' })),
      h('span', {}, `${percent(part.y)} `, h('span', { class: 'muted' }, `of ${part.n}`))];
  });
  return h('div', { class: 'card chart' }, h('h3', {}, `${label(one)} by ${column}`), h('p', { class: 'hint' }, 'score with its 95 % interval'), h('div', { class: 'category' }, rows));
}

const KINDS = { all: 'all', right: 'right', wrong: 'wrong', truncated: 'truncated', error: 'no verdict' };
const state = { task: Math.max(0, tasks.findIndex((one) => one.step === Math.max(...tasks.map((t) => t.step ?? -1)))), kind: 'all', query: '', rows: [], at: 0, sample: 0 };
const search = h('input', { class: 'search', type: 'search', placeholder: 'Search questions, answers, samples …', 'aria-label': 'search questions',
  on: { input: () => { state.query = search.value.trim().toLowerCase(); refresh(); } } });
const taskChips = h('div', { class: 'chips', role: 'group', 'aria-label': 'task' });
const kindChips = h('div', { class: 'chips', role: 'group', 'aria-label': 'samples that are' });
const list = h('ul', { class: 'list', role: 'listbox', tabindex: '0', 'aria-label': 'questions' });
const detail = h('div', { class: 'detail', 'aria-live': 'polite' });
const extent = h('p', { class: 'muted small' });
const browser = h('div', { class: 'card browser' }, h('div', { class: 'controls' }, taskChips, kindChips, search, extent), h('div', { class: 'panes' }, list, detail));

const chip = (text, count, pressed, act) => h('button', { class: 'chip', type: 'button', 'aria-pressed': String(pressed), on: { click: act } }, text, count === null ? null : h('small', {}, String(count)));
const holds = (question, kind) => kind === 'all' || question.samples.some((one) => one.kind === kind);
const share = (question) => question.samples.filter((one) => one.kind === 'right').length / question.samples.length;

function searched(question) {
  if (!state.query) return true;
  const texts = [question.id, question.prompt, question.gold, ...question.samples.flatMap((one) => [one.text, one.answer, one.why])];
  return texts.some((text) => text && text.toLowerCase().includes(state.query));
}

function refresh() {
  const before = state.rows[state.at], current = tasks[state.task];
  const fitting = current.questions.filter(searched);
  state.rows = fitting.filter((question) => holds(question, state.kind));
  state.at = Math.max(0, state.rows.indexOf(before));
  taskChips.replaceChildren(h('span', {}, 'task'), ...tasks.map((one, i) => chip(label(one), null, i === state.task, () => { state.task = i; refresh(); })));
  kindChips.replaceChildren(h('span', {}, 'with'), ...Object.entries(KINDS).map(([kind, name]) => chip(name, fitting.filter((q) => holds(q, kind)).length, state.kind === kind, () => { state.kind = kind; refresh(); })));
  for (const chips of [taskChips, kindChips]) {
    const pressed = chips.querySelector('[aria-pressed="true"]');
    chips.scrollLeft = pressed.offsetLeft + pressed.offsetWidth > chips.clientWidth ? pressed.offsetLeft - 60 : 0;
  }
  extent.textContent = `${current.questions.length} of ${current.asked} questions are on this page` + (current.questions.some((q) => q.of > q.samples.length) ? ', with the first samples of each.' : '.');
  list.replaceChildren(...state.rows.map((question, i) => h('li', { role: 'option', id: `question-${i}`, class: share(question) === 1 ? 'solved' : share(question) === 0 ? 'unsolved' : 'mixed', on: { click: () => select(i) } },
    h('span', { class: 'num' }, percent(share(question))), h('span', { class: 'text' }, question.id), h('span', { class: 'muted small' }, Object.values(question.columns).join(' · ')))));
  if (state.rows.length) select(state.at);
  else {
    list.removeAttribute('aria-activedescendant');
    list.append(h('li', { class: 'empty' }, 'nothing fits'));
    detail.replaceChildren(h('p', { class: 'empty' }, 'No question fits the filter and the search.'));
  }
}

function select(i) {
  state.at = i;
  for (const old of list.querySelectorAll('[aria-selected="true"]')) old.setAttribute('aria-selected', 'false');
  const item = list.children[i];
  item.setAttribute('aria-selected', 'true');
  list.setAttribute('aria-activedescendant', item.id);
  const above = item.offsetTop - list.offsetTop, below = above + item.offsetHeight;
  if (above < list.scrollTop) list.scrollTop = above;
  else if (below > list.scrollTop + list.clientHeight) list.scrollTop = below - list.clientHeight;
  const first = state.rows[i].samples.findIndex((one) => state.kind === 'all' || one.kind === state.kind);
  show(Math.max(0, first));
}

function show(at) {
  const question = state.rows[state.at];
  state.sample = at;
  const sample = question.samples[at];
  const fact = (name, value) => h('span', {}, h('span', { class: 'muted' }, `${name} `), h('b', {}, value));
  const prompt = h('pre', { class: 'prompt', dir: 'auto', tabindex: '0', 'aria-label': 'prompt' }, question.prompt);
  detail.replaceChildren(
    h('div', { class: 'facts' }, h('span', { class: `tag ${sample.kind}` }, KINDS[sample.kind]), fact('answer', sample.answer === null ? 'none found' : sample.answer), fact('tokens', String(sample.tokens)),
      sample.cut ? h('span', { class: 'tag truncated' }, 'cut at max_tokens') : null, ...sample.flags.map((flag) => h('span', { class: 'tag' }, flag))),
    h('h3', {}, 'Samples'), h('div', { class: 'sample-tabs' }, question.samples.map((one, i) => h('button', { type: 'button', class: one.kind, 'aria-current': String(i === at), on: { click: () => show(i) } }, `${i + 1} ${KINDS[one.kind]}`))),
    h('h3', {}, 'Prompt'), prompt, h('h3', {}, 'Expected'), h('pre', { dir: 'auto' }, question.gold),
    h('h3', {}, 'Completion'), h('pre', { class: 'completion', dir: 'auto' }, sample.text || h('span', { class: 'muted' }, '(empty)')),
    ...(sample.why ? [h('h3', {}, 'Verdict'), h('pre', { class: sample.kind === 'error' ? 'problem' : '' }, sample.why)] : []));
  detail.scrollTop = 0;
  prompt.scrollTop = prompt.scrollHeight; // worked examples come first, the question last
}

function move(by) { if (state.rows.length) select(Math.max(0, Math.min(state.rows.length - 1, state.at + by))); }
function moveSample(by) { if (state.rows.length) show(Math.max(0, Math.min(state.rows[state.at].samples.length - 1, state.sample + by))); }

// j, k, digits and / work while the browser is on screen; arrows only when the focus is inside, so that they still scroll.
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === search) {
    if (event.key === 'Escape') { search.value = ''; state.query = ''; refresh(); }
    if (event.key === 'Escape' || event.key === 'Enter') list.focus();
    return;
  }
  const box = browser.getBoundingClientRect();
  if (box.bottom < 80 || box.top > innerHeight - 80) return;
  const acts = { j: () => move(1), k: () => move(-1), '/': () => search.focus() };
  Object.keys(KINDS).forEach((kind, i) => { acts[String(i + 1)] = () => { state.kind = kind; refresh(); }; });
  if (browser.contains(document.activeElement)) Object.assign(acts, { ArrowDown: () => move(1), ArrowUp: () => move(-1), ArrowRight: () => moveSample(1), ArrowLeft: () => moveSample(-1), Home: () => move(-Infinity), End: () => move(Infinity) });
  if (Object.hasOwn(acts, event.key)) { event.preventDefault(); acts[event.key](); }
}

const learning = learningCharts();
if (learning.length) place('learning-charts', ...learning);
else for (const node of document.querySelectorAll('#learning, a[href="#learning"]')) node.remove();
// Of a run's checkpoints the last one is looked at closely; the others have reports of their own.
const later = (one) => tasks.some((other) => one.series !== null && other.series === one.series && other.task === one.task && other.step > one.step);
const close = tasks.filter((one) => !later(one));
const curves = close.flatMap((one) => [...curveChart(one), ...strategyChart(one), ...lengthChart(one)]);
place('curve-charts', ...(curves.length ? curves : [h('p', { class: 'muted' }, 'One sample per question: there is no curve over k.')]));
const categories = close.flatMap((one) => Object.entries(one.breakdown).map(([column, parts]) => categoryChart(one, column, parts)));
place('category-charts', ...(categories.length ? categories : [h('p', { class: 'muted' }, 'The data of these tasks has no categories.')]));
place('browser', browser);
document.addEventListener('keydown', onKey);
refresh();
