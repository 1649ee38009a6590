"""Remote storage on this machine: a directory, S3 over HTTP, SSH."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.sharing.processes import Process, accepts, free_port


@dataclass(frozen=True)
class Remote:
    """A DVC remote.

    Attributes:
        url: argument of ``dvc remote add``.
        settings: arguments of ``dvc remote modify``.
        environment: credentials.
        wrong: environment with wrong credentials; empty if the remote needs none.
        impatient: environment that keeps the client from retrying for minutes.
        cut: cuts off the second half of the stored object of an MD5.
        stop: takes the remote down.
        down: a word of DVC's error for a remote that is down.
        denied: a word of DVC's error for wrong credentials.
    """

    url: str
    cut: Callable[[str], None]
    stop: Callable[[], None]
    down: str
    denied: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)
    impatient: Mapping[str, str] = field(default_factory=dict)


def directory_remote(folder: Path) -> Remote:
    store = folder / "store"
    store.mkdir()
    return Remote(
        url=str(store),
        cut=lambda md5: _cut_file(store / "files" / "md5" / md5[:2] / md5[2:]),
        stop=lambda: store.rename(folder / "unmounted") if store.is_dir() else None,
        down="missing",
    )


def s3_remote(folder: Path, environment: Mapping[str, str]) -> Remote:
    """Return a remote on moto's server, which checks signatures after the account is set up."""
    for module in ("moto", "dvc_s3", "flask"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install -e '.[test-servers]'")
    import boto3

    port, num_setup_calls = free_port(), 4
    server = Process(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        folder / "moto.log",
        environment={**environment, "INITIAL_NO_AUTH_ACTION_COUNT": str(num_setup_calls)},
        ready=lambda: accepts(port),
    )
    url = f"http://127.0.0.1:{port}"

    def client(service: str, key: str = "setup", secret: str = "setup"):
        names = {"aws_access_key_id": key, "aws_secret_access_key": secret}
        return boto3.client(service, endpoint_url=url, region_name="us-east-1", **names)

    client("s3").create_bucket(Bucket="store")
    accounts = client("iam")
    accounts.create_user(UserName="somebody")
    key = accounts.create_access_key(UserName="somebody")["AccessKey"]
    rule = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
    accounts.put_user_policy(UserName="somebody", PolicyName="store", PolicyDocument=policy)
    objects = client("s3", key["AccessKeyId"], key["SecretAccessKey"])

    def cut(md5: str) -> None:
        name = {"Bucket": "store", "Key": f"cabm/files/md5/{md5[:2]}/{md5[2:]}"}
        content = objects.get_object(**name)["Body"].read()
        objects.put_object(**name, Body=content[: len(content) // 2])

    return Remote(
        url="s3://store/cabm",
        settings={"endpointurl": url, "region": "us-east-1"},
        environment={
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        },
        wrong={"AWS_SECRET_ACCESS_KEY": "wrong"},
        impatient={"AWS_MAX_ATTEMPTS": "1"},
        cut=cut,
        stop=server.stop,
        down="connect",
        denied="forbidden",
    )


def ssh_remote(folder: Path, environment: Mapping[str, str]) -> Remote:
    """Return a remote on an OpenSSH server with its own keys and port, configured in ~/.ssh/config."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("ssh-keygen") is None:
        pytest.skip("no sshd; apt install openssh-server")
    if find_spec("dvc_ssh") is None:
        pytest.skip("dvc-ssh is not installed; pip install -e '.[ssh]'")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # for privilege separation of a server that runs as root
    for name in ("host", "user", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    port = free_port()
    settings = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "Subsystem": "sftp internal-sftp",
    }
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    server = Process(
        [sshd, "-D", "-e", "-f", str(folder / "sshd_config")],
        folder / "sshd.log",
        environment=environment,
        ready=lambda: accepts(port),
    )
    homes = {}
    for key in ("user", "stranger"):
        homes[key] = folder / f"home-{key}"
        shutil.copytree(environment["HOME"], homes[key], dirs_exist_ok=True)
        ssh = homes[key] / ".ssh"
        ssh.mkdir(mode=0o700)
        host_key = (folder / "host.pub").read_text()
        (ssh / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
        (ssh / "config").write_text(
            f"Host storage\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder / key}\n"
        )
    store = folder / "store"
    return Remote(
        url=f"ssh://storage{store}",
        environment={"HOME": str(homes["user"])},
        wrong={"HOME": str(homes["stranger"])},
        cut=lambda md5: _cut_file(store / "files" / "md5" / md5[:2] / md5[2:]),
        stop=server.stop,
        down="connect",
        denied="Permission denied",
    )


def _cut_file(path: Path) -> None:
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: len(content) // 2])
