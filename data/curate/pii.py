"""Replaces e-mail and public IPv4 addresses, as datatrove 0.10 does (pipeline/formatters/pii.py)."""

import dataclasses
import ipaddress
import itertools
import re
from typing import ClassVar

import pyarrow as pa

from data.curate.step import Outcome, replace, texts

ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
EMAIL = re.compile(
    rf"\b{ATOM}+(?:\.{ATOM}+)*@(?:(?:{LABEL}\.)+{LABEL}|\[(?:{BYTE}\.){{3}}(?:{BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)])"
)
IP = re.compile(rf"(?:{BYTE}\.){{3}}{BYTE}")
PIECE = re.compile(r"\S*@\S*")
LONGEST = 10_000  # characters of a piece that is searched: the pattern takes quadratic time in them
EMAILS = ("email@example.com", "firstname.lastname@example.org")
# Datatrove's six, which did not answer when its list was made.
IPS = ("22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11", "18.104.22.168")


@dataclasses.dataclass(frozen=True)
class PersonalData:
    """Puts examples in the place of addresses, in turn; every document begins with the first, unlike datatrove's."""

    version: ClassVar[int] = 1
    emails: bool = True
    ips: bool = True
    public_ips_only: bool = True

    def __call__(self, batch: pa.RecordBatch) -> Outcome:
        """The documents without addresses; all stay."""
        found = [self.cleaned(text) for text in texts(batch)]
        return Outcome(replace(batch, "text", found), [None] * len(found))

    def cleaned(self, text: str) -> str:
        """The text without addresses."""
        if self.emails and "@" in text:
            new = itertools.cycle(EMAILS)

            def search(piece: re.Match) -> str:
                return piece[0] if len(piece[0]) > LONGEST else EMAIL.sub(lambda _: next(new), piece[0])

            text = PIECE.sub(search, text)
        if self.ips:
            others = itertools.cycle(IPS)
            text = IP.sub(lambda found: next(others) if self._replaces(found[0]) else found[0], text)
        return text

    def _replaces(self, address: str) -> bool:
        try:
            return not self.public_ips_only or ipaddress.ip_address(address).is_global
        except ValueError:
            return False  # 012.1.1.1 is none
