// Runs before the first picture, so that no dark page is seen for a moment where a light one is wanted, or the reverse.

(() => {
    const kept = (name) => {
        try {
            return JSON.parse(localStorage.getItem(`qmt-bridge.${name}`));
        } catch {
            return null;
        }
    };
    const theme = kept("theme");
    const root = document.documentElement;
    root.dataset.theme = theme === "dark" || theme === "light" ? theme : matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
    root.dataset.colours = kept("colours") === "green-up" ? "green-up" : "red-up";
})();
