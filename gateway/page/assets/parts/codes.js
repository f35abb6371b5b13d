// Codes of instruments, as their digits and markets tell them.

/** Return a code with its market, where six digits alone were given. */
export function complete(given) {
    if (!/^\d{6}$/.test(given)) return given;
    if (/^[56]|^9(?!2)/.test(given)) return `${given}.SH`;
    return /^[48]|^92/.test(given) ? `${given}.BJ` : `${given}.SZ`;
}

const INDEX = /^(000\d{3}\.SH|399\d{3}\.SZ|899\d{3}\.BJ)$/;

/** Return whether a code is one of an index, which is not traded: it has neither depth nor prints. */
export function isIndex(code) {
    return INDEX.test(code);
}
