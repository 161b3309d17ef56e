// The transport plan under the pointer, and the sound's place on its spectrogram. No library.
// Listeners sit on the document: Gradio replaces the drawn answer whenever there is a new one.
(() => {
  "use strict";
  const plans = new WeakMap();

  function planOf(figure) {
    if (!plans.has(figure)) {
      const text = atob(figure.dataset.plan);
      const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
      plans.set(figure, new Uint16Array(bytes.buffer));
    }
    return plans.get(figure);
  }

  // Light up what the plan ties to patch `index` of the grid `svg`.
  function light(svg, index) {
    const figure = svg.closest(".plan"), plan = planOf(figure);
    const other = figure.querySelector(svg.matches(".seen") ? ".heard" : ".seen");
    const own = svg.querySelectorAll("rect"), others = other.querySelectorAll("rect");
    if (!(index >= 0 && index < own.length)) return;
    const share = svg.matches(".seen")
      ? (i) => plan[index * others.length + i]
      : (i) => plan[i * own.length + index];
    const shares = [...others.keys()].map(share), total = shares.reduce((a, b) => a + b, 0) || 1;
    const times = shares.map((one) => one * shares.length / total);  // an even share
    const best = times.indexOf(Math.max(...times));
    others.forEach((cell, i) => {
      cell.classList.remove("chosen");
      // Twice an even share is bright: what is tied to all alike stays dark.
      cell.style.fillOpacity = 0.85 * Math.max(0, times[i] - 1) / Math.max(1, times[best] - 1);
    });
    own.forEach((cell, i) => {
      cell.classList.toggle("chosen", i === index);
      cell.style.fillOpacity = 0;
    });
    svg.dataset.index = index;
    const words = `The ${name(figure, svg, index)} goes most with the ${name(figure, other, best)}`;
    figure.querySelector("[role=status]").textContent =
      `${words}: ${times[best].toFixed(2)} times an even share.`;
  }

  function name(figure, svg, index) {
    const columns = Number(svg.dataset.columns), column = index % columns;
    const row = Math.floor(index / columns);
    if (svg.matches(".seen")) return `patch in row ${row + 1}, column ${column + 1}`;
    const step = Number(figure.dataset.seconds) / columns;
    return `sound from ${(column * step).toFixed(1)} to ${((column + 1) * step).toFixed(1)} s`;
  }

  function pointed(event) {
    const cell = event.target.closest?.(".plan svg rect");
    if (cell) light(cell.closest("svg"), [...cell.parentNode.querySelectorAll("rect")].indexOf(cell));
  }
  document.addEventListener("pointerover", pointed);
  document.addEventListener("click", pointed);

  document.addEventListener("keydown", (event) => {
    const svg = event.target.closest?.(".plan svg");
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!svg || !move) return;
    event.preventDefault();
    const columns = Number(svg.dataset.columns), count = svg.querySelectorAll("rect").length;
    const index = Number(svg.dataset.index ?? 0), up = svg.matches(".heard") ? -1 : 1;
    const column = Math.min(Math.max((index % columns) + move[0], 0), columns - 1);
    const row = Math.min(Math.max(Math.floor(index / columns) + up * move[1], 0), count / columns - 1);
    light(svg, row * columns + column);
  });

  // The playing sound: a line on the spectrogram, and a click on it to hear from there.
  document.addEventListener("timeupdate", (event) => {
    const row = event.target.closest?.(".meerkat")?.querySelector(".clip .row");
    if (row) row.style.setProperty("--played", event.target.currentTime / (event.target.duration || 1));
  }, true);
  document.addEventListener("click", (event) => {
    if (!event.target.matches?.(".meerkat .spectrogram")) return;
    const audio = event.target.closest(".meerkat").querySelector("audio");
    if (!audio) return;
    const box = event.target.getBoundingClientRect();
    const seek = () => { audio.currentTime = audio.duration * (event.clientX - box.left) / box.width; audio.play(); };
    if (audio.readyState) seek();
    else { audio.addEventListener("loadedmetadata", seek, { once: true }); audio.load(); }
  });
})();
