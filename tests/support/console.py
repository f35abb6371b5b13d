"""Events of the console of Windows, as the system itself sends them to one process."""

from __future__ import annotations

import sys

# Process access: create a thread, operate on and write to its memory, query.
_ACCESS = 0x0002 | 0x0008 | 0x0010 | 0x0020 | 0x0400

if sys.platform == "win32":
    import ctypes

    def send_event(pid: int, event: int) -> None:
        """Send an event (`qmt_bridge.system.console`; 0 Ctrl-C, 1 Ctrl-Break) to a process.

        Windows starts a thread at CtrlRoutine in each process of the console, and so does this in one process: a test
        cannot close the window of its own console.
        """
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.GetModuleHandleW.restype = kernel.GetProcAddress.restype = ctypes.c_void_p
        kernel.OpenProcess.restype = kernel.CreateRemoteThread.restype = ctypes.c_void_p
        library = ctypes.c_void_p(kernel.GetModuleHandleW("kernelbase.dll"))
        routine = kernel.GetProcAddress(library, b"CtrlRoutine")
        assert routine, "kernelbase.dll has no CtrlRoutine"
        process = kernel.OpenProcess(_ACCESS, False, pid)
        assert process, ctypes.WinError(ctypes.get_last_error())
        thread = kernel.CreateRemoteThread(
            ctypes.c_void_p(process), None, 0, ctypes.c_void_p(routine), ctypes.c_void_p(event), 0, None
        )
        assert thread, ctypes.WinError(ctypes.get_last_error())
        kernel.CloseHandle(ctypes.c_void_p(thread))
        kernel.CloseHandle(ctypes.c_void_p(process))
