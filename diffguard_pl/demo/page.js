// Small pictures are shown with square pixels, photos are not; examples say what they are.
document.addEventListener("load", ({target}) => {
  if (target.tagName !== "IMG") return;
  target.classList.toggle("dg-small", target.naturalWidth < 128);
  if (target.closest("#dg-examples")) target.alt = decodeURIComponent(target.src.split("/").pop()).replace(".png", "");
}, true);
