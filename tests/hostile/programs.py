"""Hostile programs by name: what each tries to do, its text, and the status it must get in the jail.

Placeholders: `{canary}` is a file with a secret that anyone may read, `{folder}` a folder where anyone may write,
`{port}` a port of this machine that accepts connections, `{host}` the id of the process that runs the programs, and
`{fd}` an inheritable file descriptor of it that reads the secret. The secret is also in its environment variable
MD_SECRET.
"""

REFUSED = "error"  # the kernel refuses the system call, so Python raises an error
MISSING = "unsupported"  # the jail has no such module

FILES = {
    "read a file": ("answer = open('{canary}').read()", REFUSED),
    "read a file with os": ("import os\nanswer = os.read(os.open('{canary}', 0), 99).decode()", REFUSED),
    "read a file with io": ("import io\nanswer = io.FileIO('{canary}').readall().decode()", REFUSED),
    "read a file with pathlib": ("import pathlib\nanswer = pathlib.Path('{canary}').read_text()", REFUSED),
    "read a file with numpy": ("import numpy\nanswer = numpy.fromfile('{canary}', 'u1').tolist()", REFUSED),
    "read a file with numpy's text reader": ("import numpy\nanswer = str(numpy.loadtxt('{canary}', str))", REFUSED),
    "map a file with numpy": ("import numpy\nanswer = bytes(numpy.memmap('{canary}', mode='r')).decode()", MISSING),
    "read a file with linecache": ("import linecache\nanswer = linecache.getline('{canary}', 1)", "ok"),
    "read a file with fileinput": ("import fileinput\nanswer = list(fileinput.input('{canary}'))", MISSING),
    "read a file through sympify": ("import sympy\nanswer = str(sympy.sympify(\"open('{canary}').read()\"))", REFUSED),
    "read a file through eval": ("answer = eval(\"open('{canary}').read()\")", REFUSED),
    "read a file through the loader": (
        "import importlib.machinery as m\nanswer = m.SourceFileLoader('x', '{canary}').get_data('{canary}').decode()",
        REFUSED,
    ),
    "run a file": ("exec(open('{canary}').read())", REFUSED),
    "read passwords": ("answer = open('/etc/shadow').read()", REFUSED),
    "list a folder": ("import os\nanswer = os.listdir('{folder}')", REFUSED),
    "walk the disk": ("import os\nanswer = [name for name in os.walk('/')]", "ok"),
    "ask whether a file exists": ("import os\nassert os.path.exists('{canary}')", REFUSED),
    "write a file": ("open('{folder}/owned', 'w').write('x')\nanswer = 1", REFUSED),
    "append to a file": ("open('{canary}', 'a').write('x')\nanswer = 1", REFUSED),
    "remove a file": ("import os\nos.remove('{canary}')\nanswer = 1", REFUSED),
    "rename a file": ("import os\nos.rename('{canary}', '{folder}/owned')\nanswer = 1", REFUSED),
    "link to a file": ("import os\nos.symlink('{canary}', '{folder}/owned')\nanswer = 1", REFUSED),
    "make a folder": ("import os\nos.makedirs('{folder}/owned')\nanswer = 1", REFUSED),
    "change rights": ("import os\nos.chmod('{canary}', 0)\nanswer = 1", REFUSED),
    "make a pipe in the file system": ("import os\nos.mkfifo('{folder}/owned')\nanswer = 1", REFUSED),
    "truncate a file": ("import os\nos.truncate('{canary}', 0)\nanswer = 1", REFUSED),
    "leave the root": ("import os\nos.chroot('/tmp')\nanswer = 1", REFUSED),
    "change the folder": ("import os\nos.chdir('{folder}')\nanswer = 1", REFUSED),
    "make a temporary file": ("import tempfile\nanswer = tempfile.mkstemp(dir='{folder}')[1]", REFUSED),
    "save with numpy": ("import numpy\nnumpy.save('{folder}/owned', numpy.ones(3))\nanswer = 1", REFUSED),
    "read memory of the host": ("answer = open('/proc/{host}/environ').read()", REFUSED),
    "read the processor's list": ("answer = open('/proc/self/maps').read()", REFUSED),
    "make a file in memory": ("import os\nanswer = os.memfd_create('x')", REFUSED),
}
NETWORK = {
    "connect": ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nanswer = 1", REFUSED),
    "connect with _socket": ("import _socket\ns = _socket.socket()\ns.connect(('127.0.0.1', {port}))", REFUSED),
    "fetch a page": (
        "import urllib.request as u\nanswer = u.urlopen('http://127.0.0.1:{port}/').read().decode()",
        (REFUSED, MISSING),
    ),
    "listen": (
        "import socket\ns = socket.socket()\ns.bind(('', 0))\ns.listen()\nanswer = s.getsockname()[1]",
        REFUSED,
    ),
    "talk to local services": ("import socket\ns = socket.socket(socket.AF_UNIX)\nanswer = 1", REFUSED),
    "a pair of sockets": ("import socket\nsocket.socketpair()\nanswer = 1", REFUSED),
    "look up a name": ("import socket\nanswer = socket.gethostbyname('example.com')", REFUSED),
    "the machine's name": ("import socket\nanswer = socket.gethostname()", REFUSED),
    "adopt a socket": ("import socket\nanswer = socket.socket(fileno={fd}).recv(99).decode()", REFUSED),
}
ENVIRONMENT = {
    "read the environment": ("import os\nanswer = os.environ['MD_SECRET']", REFUSED),
    "dump the environment": ("import os\nprint(dict(os.environ))\nanswer = 1", "ok"),
    "dump the environment from C": (
        "import ctypes\nanswer = str(ctypes.CDLL(None).getenv(b'MD_SECRET'))",
        ("ok", REFUSED, MISSING),
    ),
    "read the arguments": ("import sys\nanswer = ' '.join(sys.orig_argv)", "ok"),
    "inherited descriptor": ("import os\nanswer = os.read({fd}, 99).decode()", REFUSED),
    "every descriptor": (
        "import os\nfound = []\nfor fd in range(3, 300):\n    try:\n        found.append(os.read(fd, 99))\n"
        "    except OSError:\n        pass\nanswer = str(found)",
        "ok",
    ),
    "write to every descriptor": (
        "import os\nfor fd in range(4, 300):\n    try:\n        os.write(fd, b'owned')\n"
        "    except OSError:\n        pass\nanswer = 1",
        "ok",
    ),
    "search the memory for the secret": (
        "import gc\nanswer = [o for o in gc.get_objects() if isinstance(o, str) and 'MD_' + 'SECRET=' in o]",
        ("ok", "no_result"),
    ),
    "stdin": ("answer = input()", REFUSED),
    "all of stdin": ("import sys\nanswer = sys.stdin.read()", "ok"),
    "stdin's descriptor": ("import os\nanswer = os.read(0, 99).decode()", "ok"),
    "the terminal": ("answer = open('/dev/tty').read()", REFUSED),
}
PROCESSES = {
    "fork": ("import os\nos.fork()\nanswer = 1", REFUSED),
    "fork bomb": ("import os\nwhile True:\n    os.fork()", REFUSED),
    "fork bomb that insists": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        "timeout",
    ),
    "shell": ("import os\nanswer = os.system('touch {folder}/owned')", "ok"),
    "pipe to a shell": ("import os\nanswer = os.popen('cat {canary}').read()", REFUSED),
    "subprocess": ("import subprocess\nanswer = subprocess.check_output(['cat', '{canary}']).decode()", REFUSED),
    "background process": (
        "import subprocess\nsubprocess.Popen('sleep 1; touch {folder}/owned', shell=True, start_new_session=True)\n"
        "answer = 1",
        REFUSED,
    ),
    "spawn": ("import os\nanswer = os.posix_spawn('/bin/touch', ['touch', '{folder}/owned'], {{}})", REFUSED),
    "become another program": ("import os\nos.execv('/bin/cat', ['cat', '{canary}'])", REFUSED),
    "multiprocessing": (
        "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()\nanswer = 1",
        (REFUSED, MISSING),
    ),
    "thread": ("import threading\nthreading.Thread(target=print).start()\nanswer = 1", REFUSED),
    "thread bomb": ("import _thread\nwhile True:\n    _thread.start_new_thread(print, ())", REFUSED),
    "kill the host": ("import os\nos.kill({host}, 9)\nanswer = 1", REFUSED),
    "kill the parent": ("import os\nos.kill(os.getppid(), 9)\nanswer = 1", REFUSED),
    "kill everything": ("import os\nos.kill(-1, 9)\nanswer = 1", REFUSED),
    "kill the group": ("import os\nos.killpg(0, 15)\nanswer = 1", REFUSED),
    "interrupt the host": ("import os\nos.kill({host}, 2)\nanswer = 1", REFUSED),
    "signals through a descriptor": (
        "import fcntl\nfcntl.fcntl(3, 8, {host})\nfcntl.fcntl(3, 4, 0o20000)\nanswer = 1",
        (REFUSED, MISSING),
    ),
    "ignore signals": (
        "import signal\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        "timeout",
    ),
    "stop oneself": ("import os\nos.kill(os.getpid(), 19)\nanswer = 1", REFUSED),
    "alarm": ("import signal\nsignal.alarm(1)\nanswer = 1", ("ok", REFUSED)),
    "another user": ("import os\nos.setuid(0)\nanswer = 1", REFUSED),
    "raise a limit": ("import resource\nresource.setrlimit(7, (99, 99))\nanswer = 1", REFUSED),
    "trace the host": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nassert libc.ptrace(16, {host}, 0, 0) == 0",
        (REFUSED, MISSING),
    ),
    "leave the session": ("import os\nos.setsid()\nanswer = 1", REFUSED),
    "a lower priority": ("import os\nos.nice(-10)\nanswer = 1", REFUSED),
    "namespaces": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0", (REFUSED, MISSING)),
}
ENDINGS = {
    "exit": ("exit()", "no_result"),
    "exit with a code": ("import sys\nsys.exit(3)", REFUSED),
    "quit in a function": ("def solution():\n    quit()", "no_result"),
    "exit at once": ("import os\nos._exit(0)", REFUSED),
    "abort": ("import os\nos.abort()", REFUSED),
    "interrupt": ("raise KeyboardInterrupt", REFUSED),
    "end of the generator": ("raise GeneratorExit", REFUSED),
    "null pointer": ("import ctypes\nctypes.string_at(0)", REFUSED),
    "run on at exit": ("import atexit\natexit.register(lambda: open('{folder}/owned', 'w'))\nanswer = 1", "ok"),
    "finalizer": (
        "class A:\n    def __del__(self):\n        while True:\n            pass\na = A()\nanswer = 1",
        "ok",
    ),
    "wild bytecode": (
        "f = lambda: 1\nf.__code__ = f.__code__.replace(co_code=b'\\x64\\xff' * 50, co_stacksize=1)\nanswer = f()",
        REFUSED,
    ),
    "deep recursion": ("def f(n):\n    return f(n + 1)\nanswer = f(0)", REFUSED),
    "deeper recursion": (
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n):\n    return f(n + 1)\nanswer = f(0)",
        (REFUSED, "memory", "timeout"),
    ),
    "recursion in C": (
        "import sys\nsys.setrecursionlimit(10 ** 9)\na = []\nfor _ in range(10 ** 6):\n    a = [a]\nanswer = repr(a)",
        (REFUSED, "memory", "timeout"),
    ),
    "exception that does not print": (
        "class E(Exception):\n    def __str__(self):\n        raise E\nraise E",
        REFUSED,
    ),
    "exception with a long text": ("raise ValueError('x' * 10 ** 7)", REFUSED),
    "asynchronous trap": ("import sys\nsys.settrace(lambda *a: 1 / 0)\ndef f():\n    pass\nanswer = f()", REFUSED),
}
MEMORY = {
    "a long string": ("answer = 'a' * 10 ** 10", "memory"),
    "a long list": ("answer = [0] * 10 ** 10", "memory"),
    "a growing list": ("a = []\nwhile True:\n    a.append('x' * 10 ** 4)", "memory"),
    "a growing list that catches": (
        "a = []\nwhile True:\n    try:\n        a.append('x' * 10 ** 6)\n    except MemoryError:\n        pass",
        ("timeout", "memory"),
    ),
    "a doubling string": ("s = 'ab'\nwhile True:\n    s += s", "memory"),
    "a doubling list": ("a = [1]\nwhile True:\n    a += a", "memory"),
    "a growing dict": ("d = {{}}\nn = 0\nwhile True:\n    d[n] = str(n) * 1000\n    n += 1", "memory"),
    "bytes": ("answer = len(bytearray(10 ** 10))", "memory"),
    "nested lists": ("a = []\nwhile True:\n    a = [a, a]", ("memory", "timeout")),
    "formatting": ("answer = len('%10000000000d' % 1)", (REFUSED, "memory")),
    "padding": ("answer = len('x'.ljust(10 ** 10))", "memory"),
    "numpy": ("import numpy\nanswer = numpy.ones(10 ** 10).sum()", "memory"),
    "a mapping": ("import mmap\nanswer = len(mmap.mmap(-1, 10 ** 10))", (REFUSED, "memory", MISSING)),
    "permutations": ("import itertools\nanswer = len(list(itertools.permutations(range(12))))", ("memory", "timeout")),
    "replace": ("s = 'a' * 10 ** 5\nanswer = len(s.replace('a', s))", "memory"),
    "shared memory": (
        "from multiprocessing import shared_memory as s\nanswer = s.SharedMemory(create=True, size=9).name",
        (REFUSED, MISSING),
    ),
}
LOOPS = {
    "loop": ("while True:\n    pass", "timeout"),
    "loop that catches": (
        "while True:\n    try:\n        while True:\n            pass\n    except:\n        pass",
        "timeout",
    ),
    "sum in C": ("answer = sum(range(10 ** 12))", "timeout"),
    "membership in C": ("import itertools\nanswer = -1 in itertools.count()", "timeout"),
    "huge power": ("answer = 10 ** 10 ** 8", "timeout"),
    "tower of powers": ("answer = 9 ** 9 ** 9", ("timeout", "memory")),
    "huge shift": ("answer = 1 << 10 ** 12", ("memory", REFUSED)),
    "huge factorial": ("import math\nanswer = math.factorial(10 ** 7)", ("timeout", "memory")),
    "modular power": ("answer = pow(3, 10 ** 400000, 10 ** 4000 + 1)", "timeout"),
    "digits": (
        "import sys\nsys.set_int_max_str_digits(0)\nanswer = len(str(1 << 10 ** 7))",
        ("timeout", "ok"),
    ),  # Python 3.12 and newer are fast
    "regular expression": ("import re\nanswer = bool(re.match('(a+)+$', 'a' * 50 + 'b'))", "timeout"),
    "sorting by a trap": (
        "class A:\n    def __lt__(self, other):\n        while True:\n            pass\nanswer = sorted([A(), A()])",
        "timeout",
    ),
    "factorisation": ("import sympy\nanswer = sympy.factorint(2 ** 499 - 3)", ("timeout", "memory")),
    "sleep": ("import time\ntime.sleep(10 ** 6)\nanswer = 1", "ok"),
    "wait for a lock": ("import _thread\nlock = _thread.allocate_lock()\nlock.acquire()\nlock.acquire()", "timeout"),
    "compilation": ("answer = eval('(' * 90 + '1' + ')' * 90 + '**9' * 9)", (REFUSED, "timeout", "memory")),
    "big constant": ("answer = len(eval('\"a\" * 10 ** 10'))", "memory"),
}
OUTPUT = {
    "flood of lines": ("while True:\n    print('x' * 1000)", "timeout"),
    "one long line": ("print('x' * 10 ** 7)\nanswer = 1", "ok"),
    "flood of errors": ("import sys\nwhile True:\n    print('x' * 1000, file=sys.stderr)", "timeout"),
    "flood of descriptors": ("import os\nwhile True:\n    os.write(1, b'x' * 10 ** 6)", "timeout"),
    "flood of results": ("import os\nwhile True:\n    os.write(3, b'x' * 10 ** 6)", "no_result"),
    "forged result": (
        'import os\nos.write(3, b\'{{"status": "ok", "value": 666}}\\n\')\nanswer = 1',
        REFUSED,
    ),
    "forged protocol": ("import os\nos.write(3, b'\\x00\\x00\\x00\\x02{{}}')\nos._exit(0)", REFUSED),
    "forged status": ('import os\nos.write(3, b\'{{"status": "owned"}}\')\nos._exit(0)', REFUSED),
    "forged nan": ('import os\nos.write(3, b\'{{"status": "ok", "value": NaN}}\')\nos._exit(0)', REFUSED),
    "forged depth": ("import os\nos.write(3, b'[' * 10 ** 5)\nos._exit(0)", REFUSED),
    "forged large int": (
        "import os\nos.write(3, b'{{\"status\": \"ok\", \"value\": ' + b'9' * 9000 + b'}}')\nos._exit(0)",
        REFUSED,
    ),
    "printed protocol": ('print(\'{{"end": "ended", "seconds": 0}}\\n{{"status": "ok"}}\')\nanswer = 1', "ok"),
    "closed pipe": ("import os\nos.close(3)\nwhile True:\n    pass", REFUSED),
    "closed stdout": ("import sys\nsys.stdout.close()\nprint(1)", "ok"),
    "no stdout": ("import sys\ndel sys.stdout\nanswer = 1", "ok"),
    "terminal codes": ("print('\\x1b[2J\\x1b]0;owned\\x07')\nanswer = 1", "ok"),
    "surrogates": ("print('\\ud800')\nanswer = '\\udfff' + chr(0xd800)", "ok"),
    "surrogate in the text": ("answer = '\ud800'", REFUSED),
    "NUL in the text": ("answer = 1\x00", REFUSED),
    "NUL in the result": ("answer = 'a\\x00b'", "ok"),
    "syntax error": ("def f(:", REFUSED),
    "brackets": ("answer = " + "(" * 5000 + "1" + ")" * 5000, REFUSED),
}
VALUES = {
    "nan": ("answer = float('nan')", "ok"),
    "inf": ("answer = -float('inf')", "ok"),
    "nan in a list": ("answer = [float('nan')]", "ok"),
    "an int that is not": (
        "class I(int):\n    def __abs__(self):\n        while True:\n            pass\nanswer = I(5)",
        "ok",
    ),
    "a text that is not": (
        "class S(str):\n    def __len__(self):\n        return 0\n    def encode(self, *a):\n        return self\n"
        "answer = S('x' * 10 ** 7)",
        ("error", "no_result"),
    ),
    "endless repr": (
        "class A:\n    def __repr__(self):\n        while True:\n            pass\nanswer = A()",
        "no_result",
    ),
    "endless text": (
        "class A:\n    def __str__(self):\n        while True:\n            pass\nanswer = A()",
        "no_result",
    ),
    "hostile equality": (
        "class A:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\nanswer = A()",
        "no_result",
    ),
    "hostile float": ("class A:\n    def __float__(self):\n        return 1 / 0\nanswer = A()", "no_result"),
    "hostile iteration": (
        "class L(list):\n    def __iter__(self):\n        while True:\n            yield 1\nanswer = L()",
        "no_result",
    ),
    "hostile class": (
        "class M(type):\n    def __instancecheck__(self, other):\n        return True\n"
        "    __name__ = property(lambda self: 1 / 0)\nclass A(metaclass=M):\n    pass\nanswer = A()",
        ("error", "no_result"),
    ),
    "hostile class attribute": (
        "class A:\n    @property\n    def __class__(self):\n        return int\nanswer = A()",
        ("error", "no_result"),
    ),
    "list of itself": ("answer = []\nanswer.append(answer)", "no_result"),
    "deep list": ("answer = []\nfor _ in range(10 ** 5):\n    answer = [answer]", "no_result"),
    "hostile pickle": (
        "class A:\n    def __reduce__(self):\n        return print, ('owned',)\nanswer = A()",
        "no_result",
    ),
    "endless generator": ("import itertools\nanswer = itertools.count()", "no_result"),
}
TRAPS = {
    "frames": (
        "import sys\nf = sys._getframe()\nnames = []\nwhile f:\n    names += f.f_globals\n    f = f.f_back\n"
        "answer = 'MD_SECRET' in names",
        "ok",
    ),
    "rewrite the runner's frames": (
        "import sys\nf = sys._getframe()\nwhile f:\n    f.f_globals['to_json'] = f.f_globals['json'] = None\n"
        "    f = f.f_back\nanswer = 1",
        REFUSED,
    ),
    "subclasses": (
        "answer = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0]"
        "(['touch', '{folder}/owned']).pid",
        REFUSED,
    ),
    "the loader of builtins": (
        "answer = __loader__.load_module('os').system('touch {folder}/owned')",
        (REFUSED, "ok"),
    ),
    "builtins": ("import builtins\nbuiltins.len = builtins.sum = lambda *a: 666\nanswer = 1", "ok"),
    "math": ("import math\nmath.pi = 3\nmath.sqrt = lambda x: 666\nanswer = 1", "ok"),
    "json": (
        'import json\njson.dumps = lambda *a, **k: \'{{"status": "ok", "value": 666}}\'\nanswer = 1',
        (REFUSED, "ok"),
    ),
    "os": ("import os, sys\nos._exit = sys.exit = os.write = lambda *a: 0\nanswer = 1", "ok"),
    "decimal": ("import decimal\ndecimal.getcontext().prec = 1\nanswer = 1", "ok"),
    "modules": ("import sys\nsys.modules.clear()\nanswer = 1", ("ok", REFUSED)),
    "random": ("import random\nrandom.random = lambda: 666\nrandom.seed(1)\nanswer = 1", "ok"),
    "numpy": ("import numpy\nnumpy.sum = numpy.mean = lambda *a: 666\nanswer = 1", "ok"),
    "the collector": ("import gc\ngc.set_threshold(1)\ngc.freeze()\ngc.disable()\nanswer = 1", "ok"),
    "executable memory": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xc3')\nanswer = 1",
        (REFUSED, MISSING),
    ),
    "writing over ints": (
        "import ctypes\nctypes.memset(id(7) + 24, 8, 1)\nanswer = 1",
        ("ok", REFUSED, MISSING),
    ),
    "a raw system call": (
        "import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0",
        (REFUSED, MISSING),
    ),
    "a raw 32-bit system call": (
        "import ctypes\nassert ctypes.CDLL(None).syscall(0x40000000 + 2, b'{canary}', 0) >= 0",
        (REFUSED, MISSING),
    ),
}

HOSTILE = {
    f"{group}: {name}": program
    for group, programs in {
        "files": FILES,
        "network": NETWORK,
        "environment": ENVIRONMENT,
        "processes": PROCESSES,
        "endings": ENDINGS,
        "memory": MEMORY,
        "loops": LOOPS,
        "output": OUTPUT,
        "values": VALUES,
        "traps": TRAPS,
    }.items()
    for name, program in programs.items()
}

ORDINARY = {
    "answer = {n} * 7": lambda n: n * 7,
    "def solution():\n    birds = {n}\n    return sum([birds, len('abc')])": lambda n: n + 3,
    "import math\nanswer = math.sqrt({n}) * math.pi": lambda n: n**0.5 * 3.141592653589793,
    "import random, json\nprint(json.dumps([{n}]))": lambda n: f"[{n}]",
    "from decimal import Decimal\nanswer = Decimal('0.12345') * {n}": lambda n: f"{n * 12345 / 100000:.5f}",
    "import numpy\nanswer = numpy.sum([{n}, 1]) + numpy.mean([1, 3])": lambda n: n + 3,
    "def f():\n    yield {n} + 7\nanswer = sum(f())": lambda n: n + 7,
}
