#!/usr/bin/env python3
"""Writes a model of a wished size for tests of memory: the bundled one with a wider feed-forward part, all zeros.
Usage: grow.py IN.gguf OUT.gguf MIB"""
import struct
import sys

FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
Q8_0 = 8


def main(source, target, mib):
    data = open(source, "rb").read()
    at = 0

    def take(format):
        nonlocal at
        (value,) = struct.unpack_from("<" + format, data, at)
        at += struct.calcsize("<" + format)
        return value

    def text():
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    def skip(kind):
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            inner, count = take("I"), take("Q")
            for _ in range(count):
                skip(inner)
        else:
            take(FORMATS[kind])

    assert data[:4] == b"GGUF"
    at = 8
    tensors, keys = take("Q"), take("Q")
    width = layers = None
    for _ in range(keys):
        key, kind = text(), take("I")
        if key.endswith(".feed_forward_length"):
            width = at
        if key.endswith(".block_count"):
            layers = struct.unpack_from("<I", data, at)[0]
        skip(kind)
    head, infos = bytearray(data[:at]), []
    for _ in range(tensors):
        name = text()
        shape = [take("Q") for _ in range(take("I"))]
        infos.append((name, shape, take("I"), take("Q")))
    start = -(-at // 32) * 32
    ends = sorted(offset for *_, offset in infos) + [len(data) - start]
    model = next(shape[0] for name, shape, *_ in infos if name == "token_embd.weight")
    # Three matrices per layer, 34 bytes for 32 elements.
    wide = (mib << 20) * 32 // 34 // (3 * layers * model) // 256 * 256
    struct.pack_into("<I", head, width, wide)
    table, places, offset = b"", [], 0
    for name, shape, kind, old in infos:
        size = ends[ends.index(old) + 1] - old
        grown = ".ffn_" in name and len(shape) == 2
        if grown:
            assert kind == Q8_0, name
            shape = [wide, model] if ".ffn_down" in name else [model, wide]
            size = wide * model // 32 * 34
        table += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        table += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
        places.append((offset, None if grown else data[start + old : start + old + size]))
        offset += -(-size // 32) * 32
    begin = -(-(len(head) + len(table)) // 32) * 32
    with open(target, "wb") as out:
        out.write(head + table)
        for offset_of, content in places:
            if content is not None:
                out.seek(begin + offset_of)
                out.write(content)
        out.truncate(begin + offset)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
