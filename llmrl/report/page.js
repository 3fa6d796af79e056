// Fills the page from the JSON block: which charts there are, the health table, all metrics.
'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const { train, evals } = data;
const of = (key) => train.columns[key];
const has = (key) => Boolean(of(key)) && of(key).some((v) => v !== null);
const place = (id, ...nodes) => document.getElementById(id).append(...nodes);
const span = [...train.step, ...evals.step]; // one x axis for all curves over steps
const COLOURS = ['c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'c7', 'c8'];

function evalCharts() {
  const get = (key) => evals.columns[key] || evals.step.map(() => null);
  const found = [];
  if (evals.columns['eval/accuracy']) {
    found.push(chart({ title: 'Held-out accuracy', hint: 'on held-out problems, with its interval', x: evals.step, span, min: 0, format: percent,
      series: [{ name: 'accuracy', color: 'c1', y: get('eval/accuracy'), low: get('eval/low'), high: get('eval/high'), dots: true }] }));
  }
  found.push(...sourceCharts(evals, /^eval\/source\/(.+)\/accuracy$/, 'Held-out accuracy by source', 'of each of data.sources', { format: percent }, true));
  const names = Object.keys(evals.columns).flatMap((key) => /^eval\/(.+)\/score$/.exec(key)?.[1] ?? []);
  for (const name of names) {
    const voted = Object.keys(evals.columns).filter((key) => key.startsWith(`eval/${name}/`) && /\/(pass|maj)@\d+$/.test(key));
    found.push(chart({ title: `Benchmark ${name}`, hint: 'score with its 95 % interval', x: evals.step, span, min: 0, format: percent,
      series: [{ name: 'score', color: 'c1', y: get(`eval/${name}/score`), low: get(`eval/${name}/low`), high: get(`eval/${name}/high`), dots: true },
        ...voted.map((key, i) => ({ name: key.split('/').pop(), color: ['c3', 'c2'][i % 2], y: get(key), dots: true }))] }));
  }
  return found;
}

// One curve for each data source whose metric fits the pattern; nothing where there is one source.
function sourceCharts(points, pattern, title, hint, extra, dots) {
  const keys = Object.keys(points.columns).filter((key) => pattern.test(key));
  if (!keys.length) return [];
  const series = keys.map((key, i) => ({ name: pattern.exec(key)[1], color: COLOURS[i % 8], y: points.columns[key], dots }));
  return [chart({ title, hint, x: points.step, span, min: 0, series: dots ? series : noisy(series, 20), ...extra })];
}

function rewardChart() {
  const series = noisy([{ name: 'reward', color: 'c2', y: of('reward/mean') }], 20);
  return chart({ title: 'Reward in training', hint: 'mean over the samples of a step', x: train.step, span, min: 0, series });
}

function partsChart() {
  const known = new Set(['mean', 'std', 'min', 'max', 'errored', 'timed_out', 'not_applicable', 'none', 'unscored', 'greedy']);
  const parts = Object.keys(train.columns).filter((key) => key.startsWith('reward/') && !known.has(key.slice(7)) && has(key));
  if (!parts.length) return [];
  const series = noisy(parts.slice(0, 8).map((key, i) => ({ name: key.slice(7), color: COLOURS[(i + 1) % 8], y: of(key) })), 100);
  return [chart({ title: 'Reward parts', hint: 'each component before weighting', x: train.step, span, min: 0, series })];
}

// One small chart a metric that is there: [key or keys, title, hint, extra]
const SINGLE = [
  [['loss'], 'Loss', 'near zero by construction in group methods', {}],
  [['grad_norm'], 'Gradient norm', 'before clipping', { min: 0 }],
  [['mismatch/mean_abs_logprob'], 'Sampler–trainer mismatch', 'mean |Δ log-prob| per token; should stay small', { min: 0 }],
  [['policy/entropy'], 'Entropy', 'nats per sampled token', { min: 0 }],
  [['algo/clip_low', 'algo/clip_high'], 'Clipped tokens', 'share of tokens whose ratio met the bound', { min: 0, format: percent }],
  [['algo/kl', 'policy/kl'], 'KL to the reference', 'nats per token', {}],
  [['outcome_critic/accuracy', 'outcome_critic/majority'], 'Outcome critic', 'its accuracy on programs it has not learnt from, and that of the most frequent class', { min: 0, format: percent }],
  [['compile_error', 'runtime_error', 'failed_test', 'passed_test', 'not_passed', 'passed'].map((name) => `outcome_critic/accuracy/${name}`), 'Outcome critic by class', 'accuracy on the programs of each outcome', { min: 0, format: percent }],
  [['outcome_critic/calibration_error'], 'Outcome critic calibration', 'mean gap between confidence and accuracy', { min: 0, format: percent }],
  [['lr'], 'Learning rate', '', { min: 0, smoothed: false }],
];

function singleCharts() {
  return SINGLE.flatMap(([keys, title, hint, extra]) => {
    const there = keys.filter(has);
    if (!there.length) return [];
    const series = noisy(there.map((key, i) => ({ name: there.length > 1 ? key.split('/').pop() : title.toLowerCase(), color: COLOURS[i], y: of(key) })), extra.smoothed === false ? Infinity : 100);
    return [chart({ title, hint, x: train.step, span, series, ...extra })];
  });
}

function timeCharts() {
  const phases = data.phases.filter((name) => has(`time/${name}`)), found = [];
  if (phases.length) {
    const series = phases.map((name, i) => ({ name, color: COLOURS[i % 7], y: of(`time/${name}`).map((v) => v || 0) }));
    if (has('time/step')) {
      const rest = of('time/step').map((v, i) => Math.max(0, (v || 0) - series.reduce((sum, one) => sum + one.y[i], 0)));
      if (rest.some((v, i) => v > 0.01 * (of('time/step')[i] || Infinity))) series.push({ name: 'other', color: 'c8', y: rest });
    }
    found.push(chart({ title: 'Seconds per step', hint: 'by phase', x: train.step, stack: true, min: 0, series, format: (v) => `${fmt(Number(v.toFixed(2)))} s`, tick: fmt }));
  }
  if (has('tokens/per_s')) {
    found.push(chart({ title: 'Tokens per second', hint: 'over the whole step', x: train.step, span, min: 0, series: noisy([{ name: 'tokens/s', color: 'c3', y: of('tokens/per_s') }], 100) }));
  }
  return found;
}

function distributionCharts() {
  const d = data.distributions, found = [];
  if (!d.step.length) return found;
  const levels = d.reward.labels, scored = levels.filter((label) => label !== 'none').length;
  found.push(chart({ title: 'Rewards', hint: 'share of samples at each reward', x: d.step, stack: true, min: 0, max: 1, format: percent,
    series: levels.map((label, k) => ({ name: label === 'none' ? 'no score' : label, color: label === 'none' ? 'bad' : 'c1',
      opacity: label === 'none' || scored < 2 ? 1 : 0.14 + (0.86 * k) / (scored - 1), y: d.reward.shares.map((row) => row[k]) })) }));
  const q = (k) => d.length.map((row) => row[k]);
  found.push(chart({ title: 'Completion lengths', hint: 'sampled tokens', x: d.step, min: 0, series: [
    { name: 'longest', color: 'c8', y: q(5), faint: true, dash: '3 3' },
    { name: '5% to 95%', color: 'c3', y: q(2), low: q(0), high: q(4), bandOnly: true, bandOpacity: 0.15, opacity: 0.35, silent: true },
    { name: 'quartiles', color: 'c3', y: q(2), low: q(1), high: q(3), bandOnly: true, bandOpacity: 0.28, opacity: 0.6, silent: true },
    { name: 'median', color: 'c3', y: q(2), low: q(0), high: q(4), bandOpacity: 0 }] }));
  const t = d.thirds;
  found.push(chart({ title: 'Length histogram', hint: 'share of samples, over thirds of the run', x: t.edges, xName: t.width > 1 ? `${t.width} tokens from` : 'tokens', min: 0, format: percent,
    series: t.groups.map((group, i) => ({ name: group.label, color: COLOURS[[7, 4, 0][i + 3 - t.groups.length]], y: group.shares })) }));
  return found;
}

// The supervised stages before: the loss of each, and how often the better one of a pair is put first.
const STAGE_CURVES = [['loss', 'eval/loss', 'Loss', {}], ['pairs/accuracy', 'eval/pairs/accuracy', 'Pairs right', { min: 0, max: 1, format: percent }]];

function stageCharts() {
  return data.stages.flatMap((stage) => STAGE_CURVES.flatMap(([key, held, title, extra]) => {
    const { train: t, evals: e } = stage, axis = [...t.step, ...e.step], found = [];
    const name = stage.name.replace(/^\d+-/, '');
    if (t.columns[key]) found.push(chart({ title: `${name}: ${title.toLowerCase()}`, hint: 'in training', x: t.step, span: axis, series: noisy([{ name: title.toLowerCase(), color: 'c2', y: t.columns[key] }], 100), ...extra }));
    if (e.columns[held]) found.push(chart({ title: `${name}: held-out ${title.toLowerCase()}`, hint: 'on examples that were not trained on', x: e.step, span: axis, series: [{ name: 'held out', color: 'c1', y: e.columns[held], dots: true }], ...extra }));
    return found;
  }));
}

const HEALTH = [
  ['rollout/errored', 'rollouts that failed', true], ['rollout/truncated', 'truncated completions', false],
  ['reward/errored', 'rewards that failed', true], ['reward/timed_out', 'rewards that timed out', true],
  ['group/uniform', 'groups without contrast (all rewards equal)', false], ['mismatch/mean_abs_logprob', 'sampler–trainer mismatch', false],
];

// Marks in completions that mean somebody may be fooling a reward: [name, words, whether one is one too many]
const FLAGS = { many_boxes: ['several different boxes', false], answer_stuffing: ['stuffed with answers (four or more boxes)', true],
  empty_reasoning: ['empty reasoning (<think></think>)', false], truncated: ['flagged as truncated', false],
  test_tampering: ['code that tampers with tests', true], instructs_judge: ['text that addresses the grader', true] };

function flagRows() {
  return Object.keys(train.columns).filter((key) => key.startsWith('flag/')).map((key) => {
    const [words, alarming] = FLAGS[key.slice(5)] || [`flag ${key.slice(5)}`, false];
    return [key, `completions: ${words}`, alarming];
  });
}

function flagChart() {
  const keys = flagRows().map(([key]) => key).filter((key) => key.slice(5) in FLAGS && of(key).some((v) => v > 0));
  if (!keys.length) return [];
  const series = noisy(keys.map((key, i) => ({ name: key.slice(5).replaceAll('_', ' '), color: COLOURS[i % 8], y: of(key) })), 100);
  return [chart({ title: 'Signs of reward hacking', hint: 'share of completions with each mark', x: train.step, span, min: 0, format: percent, series })];
}

function metricRow(name, key, alarming) {
  const y = of(key), known = y.filter((v) => v !== null), [low, high] = range(known, [null, null]);
  const mean = known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  const lost = train.bucket === 1 ? y.length - known.length : 0;
  return h('tr', {}, h('td', {}, name, lost ? h('span', { class: 'muted small' }, ` (${lost} steps without a number)`) : null), h('td', {}, sparkline(train.step, y)),
    ...[known[0], mean, known[known.length - 1], low, high].map((v, i) => h('td', { class: i === 4 && alarming && v > 0 ? 'n alert' : 'n' }, fmt(v))));
}

function metricTable(rows) {
  const heads = ['first', 'mean', 'last', 'lowest', 'highest'].map((name) => h('th', { class: 'n' }, name));
  return h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, h('tr', {}, h('th', {}, 'per step'), h('th', {}, 'over the run'), ...heads)), h('tbody', {}, rows)));
}

function outcome() {
  const box = document.getElementById('interval'), ends = data.outcome;
  if (!box || !ends.length) return;
  const width = 420, px = (v) => 14 + v * (width - 32);
  const drawing = s('svg', { viewBox: `0 0 ${width} ${22 * ends.length + 22}`, role: 'img', 'aria-label': 'accuracy before and after with intervals' });
  for (const v of [0, 0.25, 0.5, 0.75, 1]) {
    drawing.append(s('line', { class: 'grid', x1: px(v), x2: px(v), y1: 2, y2: 22 * ends.length + 4 }));
    drawing.append(s('text', { x: px(v), y: 22 * ends.length + 18, 'text-anchor': 'middle' }, percent(v)));
  }
  ends.forEach((one, i) => {
    const y = 14 + 22 * i, stroke = one.name === 'after' ? 'var(--c1)' : 'var(--c8)';
    if (one.interval) drawing.append(s('line', { x1: px(one.interval[0]), x2: px(one.interval[1]), y1: y, y2: y, stroke, 'stroke-width': 6, 'stroke-opacity': 0.35, 'stroke-linecap': 'round' }));
    drawing.append(s('circle', { cx: px(one.value), cy: y, r: 5.5, fill: stroke }));
  });
  box.append(drawing);
}

function fill(id, charts, missing) {
  if (charts.length) place(id, ...charts);
  else place(id, h('p', { class: 'muted' }, missing));
}

outcome();
if (data.stages.length) fill('stage-charts', stageCharts(), 'No step of a stage recorded yet.');
fill('learning-charts', [...evalCharts(), ...(has('reward/mean') ? [rewardChart()] : []), ...sourceCharts(train, /^source\/(.+)\/reward$/, 'Reward by source', 'mean over the samples of a step', {}, false), ...partsChart(), ...flagChart()], 'No evaluation and no step recorded yet.');
fill('optimisation-charts', singleCharts(), 'No training step recorded yet.');
fill('time-charts', timeCharts(), 'No times recorded yet.');
fill('distribution-charts', distributionCharts(), 'No stored rollouts to draw from.');
const health = [...HEALTH, ...flagRows()].filter(([key]) => of(key)).map(([key, name, alarming]) => metricRow(name, key, alarming));
fill('health-table', health.length ? [metricTable(health)] : [], 'No counters recorded yet.');
const every = Object.keys(train.columns);
if (every.length) {
  const box = h('details', {}, h('summary', {}, `All ${every.length} metrics`));
  box.addEventListener('toggle', () => { if (box.children.length === 1) box.append(metricTable(every.map((key) => metricRow(key, key, false)))); });
  place('health-table', box);
}
