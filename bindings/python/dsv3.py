"""dsv3 in Python: a thin layer over libdsv3.so, by ctypes. dsv3.h specifies what everything does.

    import dsv3
    with dsv3.Model("model.dsv3") as model, model.session() as session:
        for text in session.generate("The capital of France is", n_tokens=40, seed=1):
            print(text, end="", flush=True)

There is nothing to build: put this file where Python finds modules. The library is looked for beside this file, where
`make` and `make install` leave it, and where the dynamic linker looks; dsv3.load("/path/libdsv3.so") chooses another.
numpy is needed only for logits() and kept()."""
import ctypes
import itertools
import operator
import os
import pathlib
import threading
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p

ABI_VERSION = 1

# dsv3_status
OK, INVALID_ARGUMENT, NOT_FOUND, IO, CORRUPT, UNSUPPORTED, OUT_OF_MEMORY, CONTEXT_FULL, BUSY, CANCELLED, DEVICE = range(11)
INTERNAL = 99

PARSE_ADDED, BOS, BOS_AUTO = 1, 2, 4  # flags of tokenize()
SKIP_SPECIAL, CONTINUES = 1, 2  # of detokenize()
KEEP_HIDDEN, KEEP_ROUTING = 1, 2  # session option keep
ATTENTION_AUTO, ATTENTION_ABSORBED, ATTENTION_EXPANDED = 0, 1, 2
GEMM_F32, GEMM_FP8, GEMM_FP8_F32, GEMM_FP8_UE8M0 = range(4)
KV_AUTO, KV_F32, KV_BF16 = 0, 1, 2
PHASE_AUTO, PHASE_PROMPT, PHASE_DECODE = range(3)


class Error(Exception):
    """What a call failed with: .status, and the library's words as the text."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


# ---- structs: fields in the order of dsv3.h ----------------------------------------------------------------

ProgressFunction = ctypes.CFUNCTYPE(c_int, c_void_p, c_int64, c_int64)
LogFunction = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p)


def _integer(c_type, value, name):
    """value, if it is an integer of the type, which ctypes would cut it to."""
    value = operator.index(value)
    if c_type(value).value != value:
        raise ValueError(f"{name}: got {value}, beyond {8 * ctypes.sizeof(c_type)} bits")
    return value


def _int32(value, name):
    return _integer(c_int32, value, name)


class Struct(ctypes.Structure):
    """An option struct; struct_size sets itself."""

    def __init__(self, **fields):
        unknown = fields.keys() - {name for name, _ in self._fields_}
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name, c_type in self._fields_:
            if name in fields and c_type in (c_int, c_int32, c_uint32, c_int64):
                fields[name] = _integer(c_type, fields[name], name)
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class ModelOptions(Struct):
    _fields_ = [("struct_size", c_uint32), ("verify", c_int32), ("backend", c_char_p), ("isa", c_char_p), ("log", LogFunction),
                ("log_user", c_void_p), ("progress", ProgressFunction), ("progress_user", c_void_p), ("load", c_char_p)]


class ModelInfo(Struct):
    _fields_ = [("struct_size", c_uint32), ("vocab_size", c_int32), ("hidden_size", c_int32), ("n_layers", c_int32),
                ("n_mtp_layers", c_int32), ("max_position_embeddings", c_int32), ("n_parameters", c_int64),
                ("file_bytes", c_int64), ("bytes_per_token", c_int64), ("kv_values_per_token", c_int64),
                ("architecture", c_char_p), ("model_type", c_char_p), ("id", c_char_p), ("task", c_int),
                ("n_outputs", c_int32), ("pad_token_id", c_int32), ("n_experts_per_token", c_int32),
                ("parameters_per_token", c_int64)]


class SessionOptions(Struct):
    _fields_ = [("struct_size", c_uint32), ("context", c_int32), ("max_seqs", c_int32), ("max_batch_tokens", c_int32),
                ("max_logits", c_int32), ("n_threads", c_int32), ("exact", c_int32), ("attention", c_int), ("gemm", c_int),
                ("kv", c_int), ("keep", c_uint32), ("given_routing", c_int32), ("mtp", c_int32),
                ("progress", ProgressFunction), ("progress_user", c_void_p), ("gpu_memory", c_int64), ("place", c_char_p),
                ("stream_from", c_int32)]


class Batch(Struct):
    _fields_ = [("struct_size", c_uint32), ("n", c_int32), ("token", POINTER(c_int32)), ("seq", POINTER(c_int32)),
                ("want_logits", POINTER(c_uint8)), ("router_ids", POINTER(c_int32)), ("phase", c_int)]


class SessionStats(Struct):
    _fields_ = [("struct_size", c_uint32), ("prompt_tokens", c_int64), ("prompt_seconds", c_double),
                ("decode_tokens", c_int64), ("decode_evals", c_int64), ("decode_seconds", c_double),
                ("decode_bytes", c_int64), ("cached_tokens", c_int64), ("cache_bytes", c_int64),
                ("decode_crossings", c_int64), ("decode_crossed_bytes", c_int64), ("decode_waited", c_double)]


class LogitBias(ctypes.Structure):
    _fields_ = [("token", c_int32), ("bias", ctypes.c_float)]


class Sampling(Struct):
    _fields_ = [("struct_size", c_uint32), ("top_k", c_int32), ("temperature", c_double), ("top_p", c_double),
                ("min_p", c_double), ("typical_p", c_double), ("repetition_penalty", c_double),
                ("presence_penalty", c_double), ("frequency_penalty", c_double), ("penalty_window", c_int32),
                ("n_logit_bias", c_int32), ("logit_bias", POINTER(LogitBias))]


STRUCTS = {"dsv3_model_options": ModelOptions, "dsv3_model_info": ModelInfo, "dsv3_session_options": SessionOptions,
           "dsv3_batch": Batch, "dsv3_session_stats": SessionStats, "dsv3_sampling": Sampling}

# ---- the library -------------------------------------------------------------------------------------------

_library = None

# Arguments of the functions used here; all return a status but those named in _RESULTS.
_ARGUMENTS = {
    "dsv3_abi_version": [], "dsv3_version": [], "dsv3_last_error": [],
    "dsv3_model_open": [c_char_p, POINTER(ModelOptions), POINTER(c_void_p)], "dsv3_model_close": [c_void_p],
    "dsv3_model_get_info": [c_void_p, POINTER(ModelInfo)], "dsv3_model_describe": [c_void_p, POINTER(c_char_p)],
    "dsv3_model_sampling": [c_void_p, POINTER(Sampling)], "dsv3_model_tokenizer": [c_void_p, POINTER(c_void_p)],
    "dsv3_is_end_token": [c_void_p, c_int32],
    "dsv3_tokenize": [c_void_p, c_char_p, c_size_t, c_uint32, POINTER(c_int32), c_size_t, POINTER(c_size_t)],
    "dsv3_detokenize": [c_void_p, POINTER(c_int32), c_size_t, c_uint32, c_char_p, c_size_t, POINTER(c_size_t)],
    "dsv3_utf8_complete": [c_char_p, c_size_t],
    "dsv3_session_new": [c_void_p, POINTER(SessionOptions), POINTER(c_void_p)], "dsv3_session_free": [c_void_p],
    "dsv3_session_context": [c_void_p], "dsv3_eval": [c_void_p, POINTER(Batch)],
    "dsv3_logits": [c_void_p, c_int32, POINTER(c_void_p)], "dsv3_mtp_logits": [c_void_p, c_int32, POINTER(c_void_p)],
    "dsv3_kept": [c_void_p, c_char_p, c_int32, POINTER(c_int), POINTER(c_void_p), POINTER(c_int32)],
    "dsv3_cancel": [c_void_p], "dsv3_session_get_stats": [c_void_p, POINTER(SessionStats)],
    "dsv3_sample": [c_void_p, c_int32, POINTER(Sampling), c_uint64, POINTER(c_int32)],
    "dsv3_seq_length": [c_void_p, c_int32], "dsv3_seq_tokens": [c_void_p, c_int32],
    "dsv3_seq_truncate": [c_void_p, c_int32, c_int32], "dsv3_seq_fork": [c_void_p, c_int32, c_int32, c_int32],
    "dsv3_session_save": [c_void_p, c_char_p, c_size_t, POINTER(c_size_t)],
    "dsv3_session_load": [c_void_p, c_char_p, c_size_t],
    "dsv3_session_save_file": [c_void_p, c_char_p],
    "dsv3_session_load_file": [c_void_p, c_char_p, ProgressFunction, c_void_p],
}
_RESULTS = {"dsv3_version": c_char_p, "dsv3_last_error": c_char_p, "dsv3_utf8_complete": c_size_t,
            "dsv3_session_free": None, "dsv3_cancel": None, "dsv3_seq_tokens": POINTER(c_int32)}


def load(path):
    """Uses the library at `path` from now on."""
    global _library
    library = ctypes.CDLL(str(path))
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _RESULTS.get(name, c_int)
    if library.dsv3_abi_version() != ABI_VERSION:
        raise ImportError(f"{path}: got ABI version {library.dsv3_abi_version()}, expected {ABI_VERSION}")
    _library = library


def _lib():
    if _library is None:
        name, here = f"libdsv3.so.{ABI_VERSION}", pathlib.Path(__file__).resolve().parent
        places = [here, here.parents[1] / "build/lib", *(p for p in here.parents[2:3] for p in (p / "lib", *p.glob("lib/*-linux-gnu")))]
        load(next((p / name for p in places if (p / name).exists()), name))
    return _library


_raised = threading.local()  # .error: what a callback of this thread's call has raised


def _callback(function, failed):
    """`function` for the library to call. What it raises is raised by _check when the library is back, which gets `failed`
    instead: ctypes would print it and go on."""

    def call(*arguments):
        try:
            return function(*arguments)
        except BaseException as error:
            _raised.error = error
            return failed

    return call


def _check(status):
    error, _raised.error = getattr(_raised, "error", None), None
    if error is not None:
        raise error
    if status != OK:
        raise Error(status, _lib().dsv3_last_error().decode(errors="replace"))


def version():
    return _lib().dsv3_version().decode()


def _ids(ids):
    ids = [_int32(i, "id") for i in ids]
    return (c_int32 * len(ids))(*ids)


def _text(text):
    """A str, bytes or a path as C reads it."""
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError(f"{text!r} has a zero byte")  # where C would end it
    return data


class _Handle:
    """Closed by close(), by the end of a with block, or with the object."""
    _handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        try:
            self.close()
        except Error:
            pass

    def _open(self):
        if not self._handle:
            raise ValueError(f"this {type(self).__name__} is closed")
        return self._handle


class Model(_Handle):
    """A packed file, opened. log(level, text) gets warnings and facts; progress(done, total) of verification and copy stops them by
    returning True. What these raise, the call raises that they were called by."""

    def __init__(self, path, verify=False, backend=None, isa=None, log=None, progress=None, load=None):
        self._callbacks = (_log(log), _progress(progress))
        options = ModelOptions(verify=verify, backend=backend and _text(backend), isa=isa and _text(isa), log=self._callbacks[0],
                               progress=self._callbacks[1], load=load and _text(load))
        handle = c_void_p()
        status = _lib().dsv3_model_open(_text(path), byref(options), byref(handle))
        self._handle = handle  # also should log have raised: it is to be closed
        _check(status)

    def close(self):
        """Refused with status BUSY while a session is open."""
        if self._handle:
            _check(_lib().dsv3_model_close(self._handle))
            self._handle = None

    @property
    def info(self):
        """The fields of dsv3_model_info as a dict."""
        info = ModelInfo()
        _check(_lib().dsv3_model_get_info(self._open(), byref(info)))
        values = {name: getattr(info, name) for name, _ in info._fields_[1:]}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}

    @property
    def sampling(self):
        """What the checkpoint asks for, as keyword arguments of Session.sample()."""
        sampling = Sampling()
        _check(_lib().dsv3_model_sampling(self._open(), byref(sampling)))
        return {name: getattr(sampling, name) for name, _ in sampling._fields_[1:-2]}

    def describe(self):
        """Everything about the model, as JSON text."""
        text = c_char_p()
        _check(_lib().dsv3_model_describe(self._open(), byref(text)))
        return text.value.decode()

    def _tokenizer(self):
        tokenizer = c_void_p()
        _check(_lib().dsv3_model_tokenizer(self._open(), byref(tokenizer)))
        return tokenizer

    def tokenize(self, text, flags=BOS_AUTO):
        """Ids of a str or of bytes."""
        if not isinstance(text, (str, bytes, bytearray)):
            raise TypeError(f"tokenize: got {type(text).__name__}, expected str or bytes")
        flags = _integer(c_uint32, flags, "flags")
        tokenizer, data = self._tokenizer(), text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
        n, room = c_size_t(), len(data) + 1
        while True:
            ids = (c_int32 * room)()
            _check(_lib().dsv3_tokenize(tokenizer, data, len(data), flags, ids, room, byref(n)))
            if n.value <= room:
                return ids[:n.value]
            room = n.value

    def detokenize(self, ids, flags=0):
        """Bytes: a text cut anywhere need not be whole characters."""
        flags, ids = _integer(c_uint32, flags, "flags"), _ids(ids)
        tokenizer, n, room = self._tokenizer(), c_size_t(), 16 * len(ids) + 16
        while True:
            text = ctypes.create_string_buffer(room)
            _check(_lib().dsv3_detokenize(tokenizer, ids, len(ids), flags, text, room, byref(n)))
            if n.value <= room:
                return text.raw[:n.value]
            room = n.value

    def is_end_token(self, token):
        return bool(_lib().dsv3_is_end_token(self._open(), _int32(token, "token")))

    def session(self, **options):
        """A new session; the options are the fields of dsv3_session_options."""
        return Session(self, **options)


def _progress(progress):
    if not progress:
        return ProgressFunction()
    return ProgressFunction(_callback(lambda _, done, total: int(bool(progress(done, total))), failed=1))


def _log(log):
    if not log:
        return LogFunction()
    return LogFunction(_callback(lambda _, level, text: log(level, text.decode(errors="replace")), failed=None))


class Session(_Handle):
    """Sequences of tokens that a model evaluates. For one thread at a time, cancel() excepted. progress(done, total) of an
    evaluation stops it by returning True, or by raising, which eval() then raises."""

    def __init__(self, model, progress=None, **options):
        self.model, self._callback = model, _progress(progress)
        handle = c_void_p()
        status = _lib().dsv3_session_new(model._open(), byref(SessionOptions(progress=self._callback, **options)),
                                         byref(handle))
        self._handle = handle
        _check(status)
        self._width = model.info["n_outputs"]

    def close(self):
        if self._handle:
            _lib().dsv3_session_free(self._handle)
            self._handle = None

    @property
    def context(self):
        return _lib().dsv3_session_context(self._open())

    def eval(self, ids, seq=0, want_logits=None, phase=PHASE_AUTO):
        """Appends ids to sequence `seq`, or each to its own when seq is a list."""
        n = len(ids)
        seqs = [seq] * n if isinstance(seq, int) else list(seq)
        if len(seqs) != n or (want_logits is not None and len(want_logits) != n):
            raise ValueError(f"got {n} ids, {len(seqs)} sequences and want_logits {want_logits}, expected as many of each")
        want = None if want_logits is None else (c_uint8 * n)(*map(bool, want_logits))
        _check(_lib().dsv3_eval(self._open(), byref(Batch(n=n, token=_ids(ids), seq=_ids(seqs), want_logits=want,
                                                          phase=phase))))

    def logits(self, i):
        """Of token i of the last batch, as a numpy array of its own."""
        return self._row(_lib().dsv3_logits, i, self._width)

    def mtp_logits(self, i):
        return self._row(_lib().dsv3_mtp_logits, i, self._width)

    def _row(self, function, i, n):
        row = c_void_p()
        _check(function(self._open(), _int32(i, "i"), byref(row)))
        return _array(row, ctypes.c_float, n)

    def kept(self, name, i):
        """A kept intermediate result of token i of the last batch, as a numpy array of its own."""
        dtype, values, n = c_int(), c_void_p(), c_int32()
        _check(_lib().dsv3_kept(self._open(), _text(name), _int32(i, "i"), byref(dtype), byref(values), byref(n)))
        return _array(values, (ctypes.c_float, c_int32)[dtype.value], n.value)

    def sample(self, i, seed=0, **sampling):
        """The token after token i of the last batch; without sampling options as the checkpoint asks for. logit_bias is a
        dictionary of biases by id."""
        if not 0 <= seed < 2**64:
            raise ValueError(f"got seed {seed}, expected 0..2^64-1")
        if "logit_bias" in sampling:
            bias = [LogitBias(_int32(token, "logit_bias"), value) for token, value in sampling["logit_bias"].items()]
            sampling = {**sampling, "n_logit_bias": len(bias), "logit_bias": (LogitBias * len(bias))(*bias)}
        options = byref(Sampling(**sampling)) if sampling else None
        token = c_int32()
        _check(_lib().dsv3_sample(self._open(), _int32(i, "i"), options, seed, byref(token)))
        return token.value

    def generate(self, prompt, n_tokens=None, seed=0, seq=0, flags=BOS_AUTO, errors="replace", **sampling):
        """Appends the prompt, a str, bytes or ids, and yields what the model writes after it, as str, until an end token,
        n_tokens tokens or a full context. errors: as of bytes.decode(), for what is not UTF-8."""
        ids = self.model.tokenize(prompt, flags) if isinstance(prompt, (str, bytes, bytearray)) else list(prompt)
        text = b""
        for i in itertools.count() if n_tokens is None else range(n_tokens):
            if i > 0 and self.length(seq) == self.context:
                break
            self.eval(ids, seq)
            token = self.sample(len(ids) - 1, seed, **sampling)
            if self.model.is_end_token(token):
                break
            ids = [token]
            text += self.model.detokenize(ids, SKIP_SPECIAL | CONTINUES)
            complete = _lib().dsv3_utf8_complete(text, len(text))
            if complete:
                yield text[:complete].decode(errors=errors)
                text = text[complete:]
        if text:
            yield text.decode(errors=errors)

    def cancel(self):
        """Stops a running evaluation, or else the next one; any thread."""
        _lib().dsv3_cancel(self._open())

    def length(self, seq=0):
        return _lib().dsv3_seq_length(self._open(), _int32(seq, "seq"))

    def tokens(self, seq=0):
        ids = _lib().dsv3_seq_tokens(self._open(), _int32(seq, "seq"))
        return ids[:self.length(seq)] if ids else []

    def truncate(self, length, seq=0):
        _check(_lib().dsv3_seq_truncate(self._open(), _int32(seq, "seq"), _int32(length, "length")))

    def fork(self, from_seq, to_seq, length=None):
        length = self.length(from_seq) if length is None else length
        _check(_lib().dsv3_seq_fork(self._open(), _int32(from_seq, "from_seq"), _int32(to_seq, "to_seq"), _int32(length, "length")))

    def save(self, path=None):
        """All sequences, to a file, or as bytes without one."""
        if path is not None:
            return _check(_lib().dsv3_session_save_file(self._open(), _text(path)))
        n = c_size_t()
        _check(_lib().dsv3_session_save(self._open(), None, 0, byref(n)))
        saved = ctypes.create_string_buffer(n.value)
        _check(_lib().dsv3_session_save(self._open(), saved, n.value, byref(n)))
        return saved.raw

    def load(self, saved, progress=None):
        """In place of all sequences: bytes, or the path of a file."""
        if isinstance(saved, (bytes, bytearray, memoryview)):
            return _check(_lib().dsv3_session_load(self._open(), bytes(saved), len(saved)))
        _check(_lib().dsv3_session_load_file(self._open(), _text(saved), _progress(progress), None))

    @property
    def stats(self):
        """The fields of dsv3_session_stats as a dict."""
        stats = SessionStats()
        _check(_lib().dsv3_session_get_stats(self._open(), byref(stats)))
        return {name: getattr(stats, name) for name, _ in stats._fields_[1:]}


def _array(pointer, c_type, n):
    import numpy
    return numpy.ctypeslib.as_array(ctypes.cast(pointer, POINTER(c_type)), (n,)).copy()
