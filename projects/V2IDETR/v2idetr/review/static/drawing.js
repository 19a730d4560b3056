// Frames, boxes and the timeline on canvases. What a box is differs in colour, line and label, so
// that nobody has to tell the colours apart.

export const COLOURS = {
  truth: "#ffffff",
  found: "#5ee08a",
  missed: "#ffb020",
  false: "#ff6ad5",
  plain: "#4cd7ff",
  dark: "#101418",
};
const HIT = 1, FALSE = 0;
const X0 = 0, Y0 = 1, X1 = 2, Y1 = 3, SCORE = 4, CLASS = 5, KINDS = 6;

// Kind of each row at a threshold: "found", "false", "duplicate", or "plain" without ground truth.
export function kindOf(row, rule) {
  if (row.length <= KINDS) return "plain";
  const kind = row[KINDS + rule];
  return kind === HIT ? "found" : kind === FALSE ? "false" : "duplicate";
}

// What a frame holds for one detector at a threshold.
export function outcomeOf(clip, detector, frame, threshold, rule) {
  const own = clip.detectors[detector];
  const rows = (own.frames[frame] || []).filter((row) => row[SCORE] >= threshold);
  const found = own.found ? own.found[rule.name][frame] : [];
  const missed = found.map((score) => score === null || score < threshold);
  return {
    rows,
    best: Math.max(0, ...rows.map((row) => row[SCORE])),
    missed,
    lesions: clip.truth ? clip.truth[frame].length : 0,
    misses: missed.filter(Boolean).length,
    alarms: rows.filter((row) => kindOf(row, rule.index) === "false").length,
  };
}

// A canvas with as many pixels as the screen has, and its context in CSS pixels.
function fitted(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return [context, width];
}

export function drawFrame(canvas, image, clip, frame, outcome, look) {
  const [w, h] = clip.sizes[frame];
  const height = (canvas.clientWidth * h) / w;
  const [context, width] = fitted(canvas, height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.fillStyle = COLOURS.dark;
  context.fillRect(0, 0, width, height);
  if (image) context.drawImage(image, 0, 0, width, height);
  const scale = width / w;
  if (look.explanation) drawExplanation(context, width, height, look.explanation);
  drawLesions(context, clip.truth ? clip.truth[frame] : [], outcome, scale, look);
  for (const row of outcome.rows) drawDetection(context, row, scale, width, look);
}

function drawLesions(context, lesions, outcome, scale, look) {
  lesions.forEach((box, index) => {
    const missed = outcome.missed[index];
    if (!missed && !look.truth) return;
    const colour = missed ? COLOURS.missed : COLOURS.truth;
    rectangle(context, box, scale, colour, missed ? 2.5 : 1.25, missed ? [7, 5] : [3, 3]);
    if (missed) label(context, box, scale, "missed", colour, true);
  });
}

function drawDetection(context, row, scale, width, look) {
  const kind = kindOf(row, look.rule.index);
  if (kind === "duplicate") { // of a lesion that another box finds: not counted
    rectangle(context, row, scale, COLOURS.found, 1.25, [1, 4]);
    return;
  }
  const colour = { found: COLOURS.found, false: COLOURS.false }[kind] || COLOURS.plain;
  rectangle(context, row, scale, colour, 2.5, []);
  const name = look.classNames.length > 1 ? `${look.classNames[row[CLASS]]} ` : "";
  const words = kind === "false" ? "false " : "";
  label(context, row, scale, `${words}${name}${row[SCORE].toFixed(2)}`, colour, false, width);
}

function rectangle(context, box, scale, colour, line, dash) {
  const place = [box[X0], box[Y0], box[X1] - box[X0], box[Y1] - box[Y0]].map((v) => v * scale);
  context.setLineDash(dash);
  context.lineWidth = line + 2;
  context.strokeStyle = "rgba(0, 0, 0, 0.55)";
  context.strokeRect(...place);
  context.lineWidth = line;
  context.strokeStyle = colour;
  context.strokeRect(...place);
  context.setLineDash([]);
}

function label(context, box, scale, words, colour, below, most = Infinity) {
  context.font = "600 12px system-ui, sans-serif";
  const width = context.measureText(words).width + 8;
  const x = Math.max(0, Math.min(box[X0] * scale - 1, most - width));
  let y = below ? box[Y1] * scale + 3 : box[Y0] * scale - 19;
  if (y < 0) y = box[Y0] * scale + 3;
  const bottom = context.canvas.clientHeight;
  if (y + 16 > bottom) y = Math.max(0, (below ? box[Y1] * scale : bottom) - 19);
  context.fillStyle = colour;
  context.fillRect(x, y, width, 16);
  context.fillStyle = COLOURS.dark;
  context.fillText(words, x + 4, y + 12);
}

function drawExplanation(context, width, height, explanation) {
  const cells = explanation.cells;
  if (cells) {
    cells.weights.forEach((weight, index) => {
      const x = (index % cells.columns) * cells.width * width;
      const y = Math.floor(index / cells.columns) * cells.height * height;
      context.fillStyle = `rgba(255, 230, 60, ${0.55 * weight})`;
      context.fillRect(x, y, cells.width * width, cells.height * height);
      context.strokeStyle = "rgba(255, 255, 255, 0.12)";
      context.lineWidth = 1;
      context.strokeRect(x, y, cells.width * width, cells.height * height);
    });
  }
  const points = [...(explanation.points || [])].sort((a, b) => a[2] - b[2]);
  for (const [x, y, weight] of points) {
    context.beginPath();
    context.arc(x * width, y * height, 1.5 + 4 * Math.sqrt(weight), 0, 2 * Math.PI);
    context.fillStyle = `rgba(255, 230, 60, ${0.25 + 0.75 * weight})`;
    context.fill();
    context.lineWidth = 1;
    context.strokeStyle = "rgba(0, 0, 0, 0.6)";
    context.stroke();
  }
}

// ------------------------------------------------------------------ timeline

export const ROW = 22, GAP = 6, TRUTH = 14;

export function timelineHeight(rows, hasTruth) {
  return (hasTruth ? TRUTH + GAP : 0) + rows * (ROW + GAP);
}

// One band a detector, a column a frame; where frames are narrower than a pixel, the worst counts.
export function drawTimeline(canvas, clip, bands, frame, total) {
  const hasTruth = clip.truth !== null;
  const height = timelineHeight(bands.length, hasTruth);
  const [context, width] = fitted(canvas, height);
  context.clearRect(0, 0, width, height);
  const ready = clip.times_s.length, step = width / Math.max(total, 1);
  let top = 0;
  if (hasTruth) {
    context.fillStyle = "#20262c";
    context.fillRect(0, 3, width, TRUTH - 6);
    context.fillStyle = COLOURS.truth;
    for (let i = 0; i < ready; i++) {
      if (clip.truth[i].length) context.fillRect(i * step, 3, Math.max(step - gapOf(step), 1), TRUTH - 6);
    }
    top = TRUTH + GAP;
  }
  for (const band of bands) {
    context.fillStyle = "#20262c";
    context.fillRect(0, top, width, ROW);
    drawBand(context, band.outcomes, step, top, hasTruth);
    top += ROW + GAP;
  }
  context.fillStyle = "#ffffff";
  const x = Math.min((frame + 0.5) * step, width - 1);
  context.fillRect(x - 1, 0, 2, height);
}

function gapOf(step) {
  return step > 6 ? 1 : 0;
}

function drawBand(context, outcomes, step, top, hasTruth) {
  const draw = (i, colour, y, h) => {
    context.fillStyle = colour;
    context.fillRect(i * step, top + y, Math.max(step - gapOf(step), 1), h);
  };
  if (!hasTruth) {
    outcomes.forEach(({ best }, i) => {
      if (best > 0) draw(i, COLOURS.plain, ROW * (1 - best), ROW * best);
    });
    return;
  }
  const half = ROW / 2;
  // The upper half is for lesions, the lower one for false alarms; the rarer on top.
  outcomes.forEach((o, i) => o.lesions && !o.misses && draw(i, COLOURS.found, 0, half));
  outcomes.forEach((o, i) => o.misses && draw(i, COLOURS.missed, 0, half));
  outcomes.forEach((o, i) => o.alarms && draw(i, COLOURS.false, half, half));
}
