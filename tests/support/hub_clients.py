"""Letting huggingface_hub, in this process or in others, talk to the tests' Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants


class HubClients:
    """What a server's clients need. url: of the server."""

    url: str

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Environment of a process whose huggingface_hub (cache and login in `home`) talks to this server."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "localhost,127.0.0.1",
            **({"HF_TOKEN": token} if token else {}),
            **more,
        }

    def patch(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None) -> None:
        """Let this process's huggingface_hub (cache and login in `home`) talk to this server."""
        for name, value in self.environment(home).items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
