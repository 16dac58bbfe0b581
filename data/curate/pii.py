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
LOCAL = re.compile(rf"\b{ATOM}+(?:\.{ATOM}+)*\Z")
DOMAIN = re.compile(rf"(?:{LABEL}\.)+{LABEL}|\[(?:{BYTE}\.){{3}}(?:{BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)]")
IP = re.compile(rf"(?:{BYTE}\.){{3}}{BYTE}")
REACH = 255  # characters that are searched before and after an @; without a bound a page could take hours
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
            text = _without_emails(text)
        if self.ips:
            others = itertools.cycle(IPS)
            text = IP.sub(lambda found: next(others) if self._replaces(found[0]) else found[0], text)
        return text

    def _replaces(self, address: str) -> bool:
        try:
            return not self.public_ips_only or ipaddress.ip_address(address).is_global
        except ValueError:
            return False  # 012.1.1.1 is none


def _without_emails(text: str) -> str:
    """Around every @, the longest that is an address: what the pattern over the whole text would find."""
    parts, done, new = [], 0, itertools.cycle(EMAILS)
    at = text.find("@")
    while at >= 0:
        after = text.find("@", at + 1)
        end = min(at + 1 + REACH, after if after >= 0 else len(text))
        domain = DOMAIN.match(text, at + 1, end)
        local = domain and LOCAL.search(text, max(done, at - REACH, text.rfind("@", done, at) + 1), at)
        if local:
            parts += [text[done : local.start()], next(new)]
            done = domain.end()
        at = after
    return "".join([*parts, text[done:]])
