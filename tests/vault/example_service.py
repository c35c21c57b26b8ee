"""A key service for the exec protocol, as a stand-in for Vault, OpenBao or a cloud's key service.

Its "service" is one AES key in a file, named as the only argument.  A real one replaces the
marked lines by calls to its service (for example Vault's transit/encrypt and transit/decrypt).
"""

import base64
import json
import os
import sys
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

question = json.load(sys.stdin)
data, context = bytes.fromhex(question["data"]), bytes.fromhex(question["context"])
service = AESGCM(Path(sys.argv[1]).read_bytes())
if question["operation"] == "wrap":
    nonce = os.urandom(12)
    answer = nonce + service.encrypt(nonce, data, context)  # the service's call
else:
    if question["operation"] == "unwrap-parquet":
        data = base64.b64decode(data)  # as whoever wrote the file had it wrapped
    try:
        answer = service.decrypt(data[:12], data[12:], context)  # the service's call
    except InvalidTag:
        sys.exit(3)
json.dump({"data": answer.hex()}, sys.stdout)
