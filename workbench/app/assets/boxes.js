/* Draw a box on the image by dragging; Python gets its corners as shares of width and height. */
let start = null;
let frame = null;
const pointOf = (event, picture) => {
  const area = picture.getBoundingClientRect();
  const share = (value, from, size) => Math.max(0, Math.min(1, (value - from) / size));
  return [share(event.clientX, area.left, area.width), share(event.clientY, area.top, area.height)];
};
const corners = (from, to) => ({
  x0: Math.min(from[0], to[0]),
  y0: Math.min(from[1], to[1]),
  x1: Math.max(from[0], to[0]),
  y1: Math.max(from[1], to[1]),
});

element.addEventListener("dragstart", (event) => event.preventDefault());
element.addEventListener("pointerdown", (event) => {
  const picture = event.target.closest(".wb-picture");
  if (!picture || event.button !== 0) return;
  event.preventDefault();
  start = pointOf(event, picture);
  frame = document.createElement("div");
  frame.className = "wbu-frame";
  picture.append(frame);
  picture.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => {
  if (!frame) return;
  const box = corners(start, pointOf(event, frame.parentElement));
  Object.assign(frame.style, {
    left: `${100 * box.x0}%`,
    top: `${100 * box.y0}%`,
    width: `${100 * (box.x1 - box.x0)}%`,
    height: `${100 * (box.y1 - box.y0)}%`,
  });
});
element.addEventListener("pointerup", (event) => {
  if (!frame) return;
  const box = corners(start, pointOf(event, frame.parentElement));
  frame.remove();
  frame = null;
  if (box.x1 - box.x0 > 0.005 && box.y1 - box.y0 > 0.005) trigger("box", { corners: box });
});
element.addEventListener("pointercancel", () => { frame?.remove(); frame = null; });
