"""`--watch-stdin`: a run ends when the program that started it is gone.

That program keeps the other end of standard input open and never writes. Whatever ends it, even a crash or
kill -9, the system closes that end; then this process gets what Ctrl-C would send.
"""

import importlib
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

_SECONDS = 0.5  # between two looks, on Windows


def watch_stdin() -> None:
    """From now on send this process one Ctrl-C when standard input closes. What comes in before that is ignored.

    Call it in the main thread, behind the handler of signals. An input that is closed already counts too.
    """
    main = threading.get_ident()
    threading.Thread(target=_wait, args=(main,), name="watch stdin", daemon=True).start()


def silence_if_unheard(message: bytes) -> None:
    """Write to stderr; where nobody listens there any more, send all that follows nowhere instead of failing."""
    try:
        os.write(2, message)
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _wait(main: int) -> None:
    with suppress(OSError):
        _wait_on_windows() if sys.platform == "win32" else _wait_here()
    silence_if_unheard(b"\nStandard input has closed.\n")
    if sys.platform == "win32":
        importlib.import_module("_thread").interrupt_main()
    else:  # to the main thread itself, so that it also leaves a sleep or a wait
        signal.pthread_kill(main, signal.SIGINT)


def _wait_here() -> None:
    while os.read(0, 4096):
        pass


def _wait_on_windows() -> None:
    """Look now and then: libraries loaded while another thread waits in a read of this pipe would wait as well."""
    system: Any = importlib.import_module("_winapi")
    handle = importlib.import_module("msvcrt").get_osfhandle(0)
    while True:
        waiting = system.PeekNamedPipe(handle, 0)[0]  # raises OSError once the other end is closed
        if waiting:
            os.read(0, waiting)
        else:
            time.sleep(_SECONDS)
