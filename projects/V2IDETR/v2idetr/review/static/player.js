// The player of a review: frames with boxes, thresholds, metrics, timeline, jumps. Vue component of
// NiceGUI; it keeps positions and thresholds, and asks routes.py for everything else.

import { COLOURS, drawFrame, drawTimeline, outcomeOf, timelineHeight } from "/static/review/drawing.js";

const AHEAD = 12; // frames loaded before they are needed
const KEPT = 200; // frames kept in memory
const POLL_MS = 400;
const ASSUMED_RATE_HZ = 25;

const TEMPLATE = `
<div class="player" :data-ready="ready">
  <p v-if="problem" class="problem" role="alert">{{ problem }}</p>
  <p v-if="!ready && !problem" class="wait">Reading detections …</p>
  <template v-if="ready">
    <div class="bar">
      <label v-if="meta.splits.length > 1">Split
        <select :value="split" @change="openSplit(+$event.target.value)" data-test="split">
          <option v-for="(name, i) in meta.splits" :value="i">{{ name }}</option>
        </select>
      </label>
      <label v-if="meta.has_truth" class="grow">Video
        <select :value="video" @change="openVideo(+$event.target.value, 0)" data-test="video">
          <option v-for="(one, i) in videos" :value="i">{{ videoTitle(one, i) }}</option>
        </select>
      </label>
      <div v-if="meta.has_truth" class="choice" role="radiogroup" aria-label="Rule">
        <span>Judged by</span>
        <button v-for="(words, name) in meta.rules" :class="{ on: rule === name }" role="radio"
          :aria-checked="rule === name" @click="chooseRule(name)">{{ words }}</button>
      </div>
      <div class="choice" aria-label="Shown">
        <span>Show</span>
        <button v-if="meta.has_truth" :class="{ on: truth }" :aria-pressed="truth"
          @click="truth = !truth">ground truth</button>
        <button v-if="meta.has_truth" :class="{ on: overlay === 'mask' }" data-test="mask"
          :aria-pressed="overlay === 'mask'" @click="toggle('mask')">TFD mask</button>
        <button :class="{ on: overlay === 'points' }" data-test="points"
          :aria-pressed="overlay === 'points'" @click="toggle('points')">sampling points</button>
      </div>
    </div>

    <div v-if="status" class="status" :class="status.state" role="status">
      <progress v-if="busy" :value="status.total ? status.done : null" :max="status.total"></progress>
      <span data-test="status">{{ statusWords }}</span>
      <label v-if="busy"><input type="checkbox" v-model="follow"> follow</label>
    </div>

    <div class="panels" v-show="ready_frames" :class="'of' + visible.length">
      <section v-for="d in visible" :key="d" class="panel" :class="{ active: d === active }"
          @pointerdown="active = d" :data-test="'panel' + d">
        <header>
          <h2>{{ meta.detectors[d].name }}</h2>
          <span v-if="d === active && meta.has_truth && visible.length > 1" class="tag"
            title="M and F go to what this detector misses and finds falsely">M F</span>
          <span class="verdict" :class="verdict(d).kind" :data-test="'verdict' + d">{{ verdict(d).words }}</span>
          <button v-if="visible.length > 1" class="close" title="Hide" aria-label="Hide"
            @click.stop="hide(d)">×</button>
        </header>
        <canvas :ref="'canvas' + d" class="frame" @click="active = d"></canvas>
        <p v-if="explanations[d]" class="words" :data-test="'words' + d">{{ explanations[d].words }}</p>
        <div class="threshold">
          <label :for="'t' + d">Threshold</label>
          <input :id="'t' + d" type="range" :min="meta.detectors[d].floor" max="1" step="0.001"
            :value="thresholds[d]" @input="setThreshold(d, +$event.target.value)"
            :data-test="'threshold' + d">
          <output>{{ thresholds[d].toFixed(3) }}</output>
          <button class="reset" :class="{ at: thresholds[d] === startOf(d) }"
            @click="setThreshold(d, startOf(d))"
            :title="meta.detectors[d].chosen ? 'highest F1 on validation data' : 'not chosen on data'"
            >{{ meta.detectors[d].chosen ? "chosen" : "default" }} {{ startOf(d).toFixed(3) }}</button>
        </div>
        <p v-if="meta.detectors[d].remark" class="remark">{{ meta.detectors[d].remark }}</p>
        <table v-if="meta.has_truth" class="metrics" :data-test="'metrics' + d">
          <thead><tr><th>in %</th><th>precision</th><th>recall</th><th>F1</th><th>false alarms</th><th>a minute</th></tr></thead>
          <tbody v-for="part in ['video', 'split']">
            <tr class="part"><th colspan="6">{{ part === "video" ? "this video" : "whole split: " + meta.splits[split] }}</th></tr>
            <tr v-for="(words, name) in meta.rules" :class="{ on: name === rule }" :data-test="part + '-' + name">
              <th>{{ words }}</th>
              <td v-for="value in metricRow(d, name, part)">{{ value }}</td>
            </tr>
          </tbody>
        </table>
      </section>
    </div>
    <div v-if="hidden.length" class="bar">
      <div class="choice"><span>Hidden</span>
        <button v-for="d in hidden" @click="show(d)">+ {{ meta.detectors[d].name }}</button></div>
    </div>

    <div class="transport" v-show="ready_frames">
      <button @click="step(-1)" title="Previous frame (left arrow)" aria-label="Previous frame">◂</button>
      <button class="play" @click="togglePlay" title="Play or pause (space)" data-test="play"
        :aria-label="playing ? 'Pause' : 'Play'">{{ playing ? "❚❚" : "▶" }}</button>
      <button @click="step(1)" title="Next frame (right arrow)" aria-label="Next frame">▸</button>
      <span class="place" data-test="place">frame {{ frame + 1 }} of {{ total }}{{ timeWords && ' · ' + timeWords }}</span>
      <label class="speed">speed <select v-model.number="speed">
        <option v-for="s in [0.1, 0.25, 0.5, 1, 2]" :value="s">{{ s }} ×</option></select></label>
      <template v-if="meta.has_truth">
        <span class="jumps">
          <button class="miss" @click="jump('miss', 1)" title="Next missed lesion (M; shift M: previous)"><span class="long">next </span>miss <kbd>M</kbd></button>
          <button class="false" @click="jump('false', 1)" title="Next false alarm (F; shift F: previous)"><span class="long">next </span>false alarm <kbd>F</kbd></button>
        </span>
      </template>
      <span class="note" role="status" data-test="note">{{ note }}</span>
    </div>

    <div class="timeline" v-show="ready_frames">
      <div class="names" :style="{ height: lineHeight + 'px' }">
        <span v-if="meta.has_truth" class="t">lesion</span>
        <span v-for="d in visible">{{ meta.detectors[d].name }}</span>
      </div>
      <canvas ref="timeline" data-test="timeline" @pointerdown="scrub" @pointermove="$event.buttons && scrub($event)"></canvas>
    </div>

    <div class="foot">
      <ul class="legend" v-if="meta.has_truth">
        <li><i class="truth"></i>ground truth</li>
        <li><i class="found"></i>found, with score</li>
        <li v-if="rule === 'endovis_center'"><i class="again"></i>another box on a found lesion, not counted</li>
        <li><i class="missed"></i>missed lesion</li>
        <li><i class="false"></i>false alarm</li>
        <li v-if="overlay"><i class="light"></i>{{ overlay === "mask" ? "weight in TFD" : "weight of a read" }}</li>
      </ul>
      <ul class="legend" v-else>
        <li><i class="plain"></i>detection, with score</li>
        <li v-if="overlay"><i class="light"></i>weight of a read</li>
      </ul>
      <p class="keys"><kbd>space</kbd> play, pause <kbd>←</kbd> <kbd>→</kbd> a frame
        <template v-if="meta.has_truth"><kbd>M</kbd> next missed lesion <kbd>F</kbd> next false alarm
        <kbd>shift</kbd> with M or F: the one before</template></p>
    </div>
  </template>
</div>`;

export default {
  template: TEMPLATE,
  props: { token: String },
  data() {
    return {
      ready: false, problem: "", note: "", meta: null, videos: [], metrics: null, events: [],
      split: 0, video: 0, frame: 0, rule: "iou50", active: 0, hidden: [], thresholds: [],
      truth: true, overlay: "", explanations: {}, playing: false, speed: 1, follow: true,
      status: null, ready_frames: 0, clipKey: 0,
    };
  },
  computed: {
    visible() {
      return this.meta.detectors.map((_, d) => d).filter((d) => !this.hidden.includes(d));
    },
    ruleIndex() {
      return Object.keys(this.meta.rules).indexOf(this.rule);
    },
    total() {
      return Math.max(this.ready_frames, (this.busy && this.status.total) || 0);
    },
    busy() {
      return this.status !== null && ["loading", "running"].includes(this.status.state);
    },
    lineHeight() {
      return timelineHeight(this.visible.length, this.meta.has_truth);
    },
    timeWords() {
      void [this.clipKey, this.ready_frames];
      const time = this.clip && this.clip.times_s[this.frame];
      if (time === undefined) return "";
      const assumed = this.clip.rate_hz ? "" : ` (at ${ASSUMED_RATE_HZ} frames a second)`;
      return `${clock(time)}${assumed}`;
    },
    statusWords() {
      const s = this.status;
      if (s.state === "loading") return "loading the detectors …";
      const of = s.total ? ` of ${s.total}` : "";
      const words = [`${s.done}${of} frames`];
      if (s.rate_hz) words.push(`${s.rate_hz.toFixed(1)} frames a second`);
      if (s.remaining_s !== null) words.push(`about ${clock(s.remaining_s, 0)} left`);
      if (s.state === "done") words.push("complete");
      if (s.state === "stopped") words.push("stopped");
      if (s.state === "failed") words.push(`ended early: ${s.words}`);
      return words.join(" · ");
    },
  },
  watch: {
    frame() { this.explainSoon(); },
    truth() { this.draw(); },
    active() { if (this.ready) this.draw(); },
    hidden: { deep: true, handler() { this.$nextTick(() => { this.draw(); this.explainSoon(); }); } },
  },
  async mounted() {
    this.clip = null;
    this.images = new Map();
    this.bands = [];
    this.opening = 0;
    this.onKey = (event) => this.key(event);
    this.onResize = () => this.draw();
    document.addEventListener("keydown", this.onKey);
    window.addEventListener("resize", this.onResize);
    try {
      this.meta = await this.ask("");
      this.rule = "iou50" in this.meta.rules ? "iou50" : Object.keys(this.meta.rules)[0];
      this.thresholds = this.meta.detectors.map((_, d) => this.startOf(d));
      await this.openSplit(0);
      this.ready = true;
      this.$nextTick(() => this.draw());
      if (!this.meta.has_truth) { this.playing = true; this.tick(); }
    } catch (error) {
      this.problem = error.message;
    }
  },
  unmounted() {
    this.gone = true;
    document.removeEventListener("keydown", this.onKey);
    window.removeEventListener("resize", this.onResize);
  },
  methods: {
    // ---------------------------------------------------------------- the server
    async ask(path, values = {}) {
      const response = await fetch(`/api/${this.token}${path}?${new URLSearchParams(values)}`);
      let answer = null;
      try { answer = await response.json(); } catch { /* said below */ }
      if (response.ok) return answer;
      throw new Error((answer && answer.error) || `The program answered ${response.status}.`);
    },
    async openSplit(split) {
      this.playing = false;
      const own = (this.opening += 1);
      const videos = await this.asking(this.ask("/videos", { split }));
      if (videos !== null && own === this.opening) await this.openVideo(0, 0, split, videos);
    },
    async openVideo(video, frame, split = this.split, videos = this.videos) {
      this.playing = this.playing && !this.meta.has_truth;
      const own = (this.opening += 1); // an answer that comes after another choice is dropped
      const clip = await this.asking(this.ask("/clip", { split, video, start: 0 }));
      if (clip === null || own !== this.opening) return;
      this.images.clear();
      this.clip = clip;
      [this.split, this.videos, this.video] = [split, videos, video];
      this.explanations = {};
      this.take(clip);
      this.frame = Math.min(frame, Math.max(0, clip.times_s.length - 1));
      this.clipKey += 1;
      if (!clip.complete) setTimeout(() => this.poll(), POLL_MS);
      await Promise.all([this.refreshFigures(), this.load(this.frame)]);
      this.explainSoon();
      this.draw();
    },
    // What is new of a video that is being processed.
    async poll() {
      if (this.gone) return;
      let part = null;
      try {
        part = await this.ask("/clip", { split: 0, video: 0, start: this.clip.times_s.length });
      } catch (error) {
        this.problem = error.message;
        return;
      }
      const clip = this.clip;
      if (part.start === clip.times_s.length) {
        for (const key of ["times_s", "sizes", "names"]) clip[key].push(...part[key]);
        part.detectors.forEach((own, d) => clip.detectors[d].frames.push(...own.frames));
      }
      this.take(part);
      if (!part.complete) setTimeout(() => this.poll(), POLL_MS);
      await this.load(this.frame); // nothing was ready when the page was opened
      this.$nextTick(() => this.draw());
    },
    take(part) {
      this.status = part.status || null;
      this.ready_frames = this.clip.times_s.length;
      if (!part.shown) return;
      part.shown.forEach((shown, d) => {
        const untouched = this.thresholds[d] === this.startOf(d);
        this.meta.detectors[d] = shown;
        if (untouched) this.thresholds[d] = this.startOf(d);
      });
    },
    async asking(promise) {
      try {
        this.note = "";
        return await promise;
      } catch (error) {
        if (!this.ready) throw error;
        this.note = error.message;
        return null;
      }
    },
    // One question at a time, and once more if a threshold has moved in between.
    async refreshFigures() {
      if (!this.meta.has_truth) return;
      if (this.asked) { this.again = true; return; }
      this.asked = true;
      do {
        this.again = false;
        const values = { split: this.split, video: this.video, thresholds: this.thresholds.join(",") };
        const answer = await this.asking(this.ask("/metrics", values));
        if (answer !== null) [this.metrics, this.events] = [answer.detectors, answer.events];
      } while (this.again);
      this.asked = false;
    },
    async jump(what, step) {
      this.playing = false;
      const own = this.opening;
      const answer = await this.asking(this.ask("/jump", {
        what, step, detector: this.active, rule: this.rule, threshold: this.thresholds[this.active],
        split: this.split, video: this.video, frame: this.frame,
      }));
      if (answer === null || own !== this.opening) return;
      const words = what === "miss" ? "missed lesion" : "false alarm";
      if (answer.place === null) {
        this.note = `no ${words} of ${this.meta.detectors[this.active].name} in this split`;
        return;
      }
      const [video, frame] = answer.place;
      if (video !== this.video) await this.openVideo(video, frame);
      else this.go(frame);
    },
    // ---------------------------------------------------------------- frames
    load(frame) {
      if (frame < 0 || frame >= this.ready_frames) return Promise.resolve();
      if (!this.images.has(frame)) {
        const image = new Image();
        const entry = { image, done: false, fault: "" };
        entry.promise = new Promise((resolve) => {
          image.onload = () => { entry.done = true; resolve(); };
          image.onerror = () => { entry.done = true; entry.fault = "x"; resolve(); };
        });
        image.src = `/api/${this.token}/frame/${this.split}/${this.video}/${frame}.jpg`;
        this.images.set(frame, entry);
        if (this.images.size > KEPT) this.images.delete(this.images.keys().next().value);
      }
      return this.images.get(frame).promise;
    },
    async go(frame) {
      this.frame = Math.max(0, Math.min(frame, this.ready_frames - 1));
      this.follow = this.follow && this.frame === this.ready_frames - 1;
      this.draw();
      await this.load(this.frame);
      this.draw();
      for (let i = 1; i <= AHEAD; i++) this.load(this.frame + i);
    },
    step(by) {
      this.playing = false;
      this.go(this.frame + by);
    },
    togglePlay() {
      this.playing = !this.playing;
      if (!this.playing) { this.explainSoon(); return; }
      this.explanations = {};
      if (!this.busy && this.frame >= this.ready_frames - 1) this.frame = 0;
      this.tick();
    },
    // Shows the frame whose time has come; waits for frames that are not loaded or not ready.
    tick() {
      const clip = this.clip;
      let [began, from] = [performance.now(), this.frame];
      const turn = async () => {
        if (!this.playing || this.gone || clip !== this.clip) return;
        if (this.follow && this.busy) {
          if (this.ready_frames && this.frame !== this.ready_frames - 1) {
            this.frame = this.ready_frames - 1;
            await this.load(this.frame);
            this.draw();
          }
          [began, from] = [performance.now(), this.frame];
        } else if (clip.times_s.length) {
          const now = clip.times_s[from] + ((performance.now() - began) / 1000) * this.speed;
          let next = this.frame;
          while (next + 1 < this.ready_frames && clip.times_s[next + 1] <= now) next += 1;
          if (next !== this.frame) {
            const late = !(this.images.get(next) || {}).done;
            await this.load(next);
            this.frame = next;
            this.draw();
            for (let i = 1; i <= AHEAD; i++) this.load(next + i);
            if (late) [began, from] = [performance.now(), next];
          }
          if (this.frame === this.ready_frames - 1) {
            if (!this.busy) { this.playing = false; this.explainSoon(); return; }
            [began, from] = [performance.now(), this.frame];
          }
        }
        requestAnimationFrame(turn);
      };
      requestAnimationFrame(turn);
    },
    scrub(event) {
      const box = event.currentTarget.getBoundingClientRect();
      const place = (event.clientX - box.left) / box.width;
      this.playing = false;
      this.go(Math.floor(place * this.total));
    },
    // ---------------------------------------------------------------- drawing
    outcome(d, frame) {
      const rule = { name: this.rule, index: this.ruleIndex };
      return outcomeOf(this.clip, d, frame, this.thresholds[d], rule);
    },
    draw() {
      if (!this.clip || !this.ready || !this.ready_frames) return;
      const entry = this.images.get(this.frame);
      const image = entry && entry.done && !entry.fault ? entry.image : null;
      if (entry && entry.fault) this.explainFault();
      for (const d of this.visible) {
        const canvas = (this.$refs[`canvas${d}`] || [])[0];
        if (!canvas) continue;
        const look = {
          rule: { name: this.rule, index: this.ruleIndex }, truth: this.truth,
          classNames: this.meta.detectors[d].class_names, explanation: this.explanations[d],
        };
        drawFrame(canvas, image, this.clip, this.frame, this.outcome(d, this.frame), look);
      }
      const bands = this.visible.map((d) => this.band(d));
      if (this.$refs.timeline) drawTimeline(this.$refs.timeline, this.clip, bands, this.frame, this.total);
    },
    // Outcomes of all frames, kept while clip, rule and threshold stay: they take longer than a frame.
    band(d) {
      const [clip, rule, threshold] = [this.clip, this.rule, this.thresholds[d]];
      let own = this.bands[d];
      if (!own || own.clip !== clip || own.rule !== rule || own.threshold !== threshold) {
        own = this.bands[d] = { clip, rule, threshold, outcomes: [] };
      }
      for (let i = own.outcomes.length; i < this.ready_frames; i++) own.outcomes.push(this.outcome(d, i));
      return own;
    },
    async explainFault() {
      const url = `/api/${this.token}/frame/${this.split}/${this.video}/${this.frame}.jpg`;
      try {
        this.note = (await (await fetch(url)).json()).error;
      } catch { this.note = "This frame cannot be shown."; }
    },
    // ---------------------------------------------------------------- masks and sampling points
    toggle(what) {
      this.overlay = this.overlay === what ? "" : what;
      this.explanations = {};
      this.draw();
      this.explainSoon();
    },
    explainSoon() {
      clearTimeout(this.soon);
      this.explanations = {};
      if (this.overlay && !this.playing) this.soon = setTimeout(() => this.explain(), 150);
    },
    async explain() {
      const [what, frame, key] = [this.overlay, this.frame, this.clipKey];
      for (const d of this.visible) {
        if (!this.explanations[d]) this.explanations[d] = { words: "computing …" };
        const values = { what, detector: d, split: this.split, video: this.video, frame };
        let answer = null;
        try {
          answer = await this.ask("/explain", values);
        } catch (error) {
          answer = { words: error.message };
        }
        if (what !== this.overlay || frame !== this.frame || key !== this.clipKey || this.playing) return;
        this.explanations[d] = answer;
        this.draw();
      }
    },
    // ---------------------------------------------------------------- thresholds and words
    startOf(d) {
      return this.meta.detectors[d].thresholds[this.rule];
    },
    setThreshold(d, value) {
      this.thresholds[d] = value;
      this.draw();
      this.refreshFigures();
    },
    chooseRule(rule) {
      const moved = this.thresholds.map((t, d) => t !== this.startOf(d));
      this.rule = rule;
      this.thresholds = this.thresholds.map((t, d) => (moved[d] ? t : this.startOf(d)));
      this.draw();
      this.refreshFigures();
    },
    hide(d) {
      this.hidden.push(d);
      if (this.active === d) this.active = this.visible[0];
    },
    show(d) {
      this.hidden = this.hidden.filter((other) => other !== d);
    },
    verdict(d) {
      void [this.clipKey, this.ready_frames];
      if (!this.clip || !this.ready_frames) return { kind: "", words: "" };
      const o = this.outcome(d, this.frame);
      if (!this.meta.has_truth) return { kind: "", words: counted(o.rows.length, "detection") };
      const words = [];
      if (o.lesions) words.push(o.misses ? (o.lesions > 1 ? `${o.misses} of ${o.lesions} missed` : "missed") : "found");
      if (o.alarms) words.push(counted(o.alarms, "false alarm"));
      if (!words.length) words.push("no lesion, no detection");
      return { kind: o.misses ? "missed" : o.alarms ? "false" : o.lesions ? "found" : "", words: words.join(", ") };
    },
    metricRow(d, rule, part) {
      const own = this.metrics && this.metrics[d] && this.metrics[d][rule][part];
      if (!own) return ["", "", "", "", ""];
      const share = (v) => (v === null ? "–" : (100 * v).toFixed(1));
      const minute = own.alarms_a_minute === null ? "–" : own.alarms_a_minute.toPrecision(3);
      return [share(own.precision), share(own.recall), share(own.f1), own.alarms, minute];
    },
    videoTitle(one, i) {
      const own = this.events[this.active] && this.events[this.active][this.rule][i];
      const parts = [];
      if (own && own.miss) parts.push(`${own.miss} missed`);
      if (own && own.false) parts.push(`${own.false} false`);
      const group = one.group ? ` (${one.group})` : "";
      return `${one.name}${group} · ${counted(one.frames, "frame")}${parts.length ? " · " + parts.join(", ") : ""}`;
    },
    // ---------------------------------------------------------------- keys
    key(event) {
      if (!this.ready || event.ctrlKey || event.altKey || event.metaKey) return;
      const focus = document.activeElement;
      const tag = focus ? focus.tagName : "";
      if (tag === "TEXTAREA" || tag === "SELECT" || (tag === "INPUT" && focus.type !== "range" && focus.type !== "checkbox")) return;
      const arrows = tag === "INPUT" && focus.type === "range";
      const key = event.key.toLowerCase();
      if (key === " ") { if (!event.repeat) this.togglePlay(); }
      else if (key === "arrowleft" && !arrows) this.step(-1);
      else if (key === "arrowright" && !arrows) this.step(1);
      else if (key === "m" && this.meta.has_truth) this.jump("miss", event.shiftKey ? -1 : 1);
      else if (key === "f" && this.meta.has_truth) this.jump("false", event.shiftKey ? -1 : 1);
      else return;
      event.preventDefault();
    },
  },
};

function clock(seconds, decimals = 2) {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(decimals);
  return `${minutes}:${rest.padStart(decimals ? decimals + 3 : 2, "0")}`;
}

function counted(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
