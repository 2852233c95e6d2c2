"use strict";
// The preview's page: a pane for each camera and view, fed by one WebSocket (server.py describes its messages).
const panes = new Map(); // id: Pane
const template = document.getElementById("pane");
const decoder = new TextDecoder();
let socket = null;

const say = (message) => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
const notice = (text) => { document.getElementById("notice").textContent = text; };

class Pane {
  constructor(id, camera, view) {
    Object.assign(this, { id, camera, view, zoomed: false, header: null });
    this.root = template.content.firstElementChild.cloneNode(true);
    this.root.dataset.pane = id;
    const find = (selector) => this.root.querySelector(selector);
    this.canvas = find("canvas");
    this.slider = find(".share");
    this.auto = find(".auto");
    this.level = find(".level");
    this.touched = 0; // when the dial was last turned here: what the server says of before that does not count
    this.auto.addEventListener("change", () => this.denoise());
    this.level.addEventListener("input", () => { this.auto.checked = false; this.denoise(); });
    this.selection = find(".selection");
    this.whole = find(".whole");
    find("h2").textContent = view === "full" ? camera : `${camera} · ${view}`;
    this.slider.addEventListener("input", () => this.compare());
    this.whole.addEventListener("click", () => { this.whole.hidden = true; say({ do: "whole", pane: id }); });
    this.canvas.addEventListener("pointerdown", (event) => this.drag(event));
    document.getElementById("panes").append(this.root);
    this.watch();
  }

  watch() {
    say({ do: "watch", pane: this.id, camera: this.camera, view: this.view, compare: this.slider.value < 100 });
  }

  denoise() {
    this.touched = Date.now();
    this.root.querySelector("output").textContent = this.auto.checked ? "…" : this.level.value;
    say({ do: "denoise", pane: this.id, value: this.auto.checked ? "auto" : Number(this.level.value) });
  }

  dial({ auto, noise }, model) {
    this.root.querySelector(".denoise").hidden = !model.noise;
    this.auto.parentElement.hidden = !model.auto;
    if (Date.now() - this.touched < 2000) return;
    this.level.max = model.noise;
    this.auto.checked = auto;
    this.level.value = noise;
    this.root.querySelector("output").textContent = noise.toFixed(1);
  }

  compare() {
    this.watch();
    if (this.images) this.draw();
  }

  async show(header, jpegs) {
    try {
      const images = await Promise.all(jpegs.map((jpeg) => createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }))));
      this.images?.forEach((image) => image.close());
      this.images = images;
      this.header = header;
      this.draw();
    } finally {
      say({ do: "drawn", pane: this.id });
    }
  }

  draw() {
    const [ours, bicubic] = this.images;
    const { canvas, header } = this;
    if (canvas.width !== ours.width || canvas.height !== ours.height) {
      canvas.width = ours.width;
      canvas.height = ours.height;
    }
    const context = canvas.getContext("2d");
    context.drawImage(ours, 0, 0);
    const edge = bicubic ? Math.round(canvas.width * (100 - this.slider.value) / 100) : 0;
    if (edge > 0) {
      context.drawImage(bicubic, 0, 0, edge, canvas.height, 0, 0, edge, canvas.height);
      context.fillStyle = "#6cb6ff";
      context.fillRect(edge - 1, 0, 2, canvas.height);
    }
    this.whole.hidden = !header.zoomed;
    this.root.querySelector(".waiting").hidden = true;
    const still = new URLSearchParams({ camera: header.camera, view: header.still });
    this.root.querySelector(".save").href = `still?${still}`;
    // For programs that read the page.
    Object.assign(canvas.dataset, { sequence: header.sequence, size: header.size.join("x"), zoomed: header.zoomed,
      compared: Boolean(bicubic), quality: header.quality, noise: header.noise });
  }

  drag(down) {
    if (down.button !== 0 || !this.header) return;
    down.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    const at = (event) => [
      Math.min(Math.max(event.clientX - box.left, 0), box.width), Math.min(Math.max(event.clientY - box.top, 0), box.height)];
    const from = at(down);
    let area = null;
    const move = (event) => {
      const to = at(event);
      area = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])];
      const [left, top, width, height] = area.map((n) => `${n}px`);
      Object.assign(this.selection.style, { left, top, width, height });
      this.selection.hidden = false;
    };
    const done = new AbortController(); // ends all three
    const end = (event) => {
      done.abort();
      this.selection.hidden = true;
      if (event.type === "pointerup" && area && area[2] > 4 && area[3] > 4) this.zoom(area, box);
    };
    window.addEventListener("pointermove", move, { signal: done.signal });
    window.addEventListener("pointerup", end, { signal: done.signal });
    window.addEventListener("pointercancel", end, { signal: done.signal }); // a finger that scrolls
  }

  zoom([left, top, width, height], box) {
    // As large as the pane, at its pixels; the rectangle's own shape is kept.
    const density = window.devicePixelRatio || 1;
    const most = Math.max(window.innerHeight - 160, 200);
    const factor = Math.min(box.width / width, most / height);
    const size = [Math.round(width * factor * density), Math.round(height * factor * density)];
    say({ do: "zoom", pane: this.id, rect: [left / box.width, top / box.height, width / box.width, height / box.height], size });
  }

  state(camera, model) {
    this.dial(camera.denoise, model);
    const badge = this.root.querySelector(".state");
    badge.textContent = badge.dataset.state = camera.state;
    badge.title = camera.trouble;
    const given = this.header && this.header.quality !== "full" ? ` · ${this.header.quality}` : "";
    const returns = camera.reconnects ? ` · ${camera.reconnects} reconnects` : "";
    const trouble = camera.trouble ? ` · ${camera.trouble}` : "";
    this.root.querySelector(".figures").textContent =
      `${camera.fps.toFixed(1)} fps · age ${camera.age_ms.p50.toFixed(0)} ms · ${camera.dropped} dropped${returns}${given}${trouble}`;
  }
}

function onState({ state, streams, model }) {
  document.getElementById("model").textContent = `${model.name}, ${model.backend}`;
  document.getElementById("totals").textContent =
    `${state.fps.toFixed(1)} frames/s · ${Math.round(state.memory_mib + state.workers_mib)} MiB · up ${Math.round(state.seconds)} s`;
  const failures = state.outputs.filter((output) => output.failure).map((output) => `${output.where}: ${output.failure}`);
  if (failures.length) notice(failures.join("; "));
  const wanted = new Set();
  for (const { camera, view } of streams) {
    const id = `${camera}/${view}`;
    wanted.add(id);
    if (!panes.has(id)) panes.set(id, new Pane(id, camera, view));
  }
  for (const [id, pane] of panes) {
    if (wanted.has(id)) {
      pane.state(state.cameras[pane.camera], model);
    } else {
      say({ do: "close", pane: id });
      pane.root.remove();
      panes.delete(id);
    }
  }
}

function onPicture(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, length)));
  let at = 4 + length;
  const jpegs = header.lengths.map((n) => { const jpeg = new Uint8Array(buffer, at, n); at += n; return jpeg; });
  panes.get(header.pane)?.show(header, jpegs);
}

function connect() {
  const address = new URL("live", location.href);
  address.protocol = address.protocol.replace("http", "ws");
  address.search = "";
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    notice("");
    for (const pane of panes.values()) { pane.watch(); }
  };
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") { onPicture(data); return; }
    const message = JSON.parse(data);
    if (message.error) notice(message.error); else onState(message);
  };
  socket.onclose = () => {
    notice("not connected: the stream has ended or too many are watching; trying again");
    setTimeout(connect, 1500);
  };
}

connect();
