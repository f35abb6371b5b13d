// What is drawn, at most once in each frame of the screen, however many records arrive between two of them.

const waiting = new Set();
let asked = false;

/** Call `task` before the next frame; the same function counts once. */
export function draw(task) {
    waiting.add(task);
    if (!asked) {
        asked = true;
        requestAnimationFrame(run);
    }
}

function run() {
    asked = false;
    const tasks = [...waiting];
    waiting.clear();
    for (const task of tasks) task();
}
