"""The research agent in a process of its own, which can be killed and started again.

The child (`python agent_process.py ...`) reports each event as one line of JSON on its standard output.
A step is reported as saved only after the checkpointer's `put` returned: what the parent reads was promised.

    opened         the checkpointer's file is open    ms
    loaded         the thread's state was read        ms, step, messages
    saved          a step was acknowledged            step, checkpoint_id, messages, digest, ms, since_open_ms
    tool started   a tool call began                  call
    result saved   its result was acknowledged        call
    holding        it goes no further: kill me here   call, step
    finished       the agent has answered             seconds

`AgentProcess` is the parent's side: it starts the child, yields the events, and never leaves a child behind.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

_HOLD_SECONDS = 60  # longer than any parent takes to kill; bounded, so that an orphan ends by itself


class AgentProcessError(Exception):
    """The child ended by itself, before its work was done."""


class AgentProcess:
    """An agent that runs within the `with` block: iterate over its events, or kill it."""

    def __init__(
        self,
        saver: str,
        path: Path,
        thread: str,
        rounds: int,
        *,
        resume: bool = False,
        hold_from_step: int = 0,
    ) -> None:
        self._command = [sys.executable, __file__, saver, str(path), thread, str(rounds)]
        self._command += ["--resume"] if resume else []
        self._command += ["--hold-from-step", str(hold_from_step)] if hold_from_step else []
        self._errors_path = path.with_name(f"errors-of-{path.name}")
        self.killed = False

    def __enter__(self) -> AgentProcess:
        self._errors = self._errors_path.open("w+")
        self._child = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent alone, and the parent ends the child
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._pipe.close()
        self._errors.close()
        self._errors_path.unlink()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The events so far and to come, until the child ends.

        Raises:
            AgentProcessError: It ended with an error and was not killed by us; carries what it printed.
        """
        for line in self._pipe:
            if line.endswith("\n"):  # the last line of a killed child may be half a line
                yield json.loads(line)
        if self._child.wait() != 0 and not self.killed:
            self._errors.seek(0)
            raise AgentProcessError(f"the agent ended with exit code {self._child.returncode}:\n{self._errors.read()}")

    def kill(self) -> None:
        """End the child at once, with no chance to tidy up (SIGKILL). Does nothing once it has ended."""
        if self._child.poll() is None:
            self.killed = True
            self._child.kill()
            self._child.wait()

    @property
    def _pipe(self) -> IO[str]:
        assert self._child.stdout is not None
        return self._child.stdout


def message_digest(message: Any) -> bytes:
    """A fingerprint of what a message says and calls. Not of its id, which is drawn at random in each run."""
    told = hashlib.sha256(message.type.encode())
    told.update(message.content.encode())
    told.update(json.dumps(getattr(message, "tool_calls", [])).encode())
    return told.digest()


def conversation_digest(digests: Sequence[bytes]) -> str:
    """One fingerprint of a conversation, from those of its messages in order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


class _Observer:
    """Watches a checkpointer's calls and an agent's tools, and reports them."""

    def __init__(self, report: Callable[..., None], hold_from_step: int) -> None:
        self._report = report
        self._hold_from_step = hold_from_step
        self._opened_at = time.perf_counter()
        self._digests: list[bytes] = []
        self._step = -1

    def watch(self, saver: Any) -> None:
        """Report each call of this checkpointer after it returned."""
        self._report("opened", ms=_since_ms(self._opened_at))
        load, put, put_writes = saver.get_tuple, saver.put, saver.put_writes

        @functools.wraps(load)
        def observed_load(config: Any) -> Any:
            began = time.perf_counter()
            found = load(config)
            spent_ms = _since_ms(began)
            if found is not None:
                messages = found.checkpoint["channel_values"].get("messages", [])
                self._step = found.metadata["step"]
                self._report("loaded", ms=spent_ms, step=self._step, messages=len(messages))
            return found

        @functools.wraps(put)
        def observed_put(config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
            began = time.perf_counter()
            stored = put(config, checkpoint, metadata, new_versions)
            spent_ms, since_open_ms = _since_ms(began), _since_ms(self._opened_at)
            messages = checkpoint["channel_values"].get("messages", [])
            # Within one run the conversation only grows, so each message is digested once.
            self._digests += [message_digest(m) for m in messages[len(self._digests) :]]
            self._step = metadata["step"]
            self._report(
                "saved",
                step=self._step,
                checkpoint_id=checkpoint["id"],
                messages=len(messages),
                digest=conversation_digest(self._digests),
                ms=spent_ms,
                since_open_ms=since_open_ms,
            )
            return stored

        # `wraps` also keeps the signature, by which LangGraph decides whether to pass `task_path`.
        @functools.wraps(put_writes)
        def observed_put_writes(config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            put_writes(config, writes, task_id, task_path)
            for channel, value in writes:
                for message in value if channel == "messages" else ():
                    if getattr(message, "type", None) == "tool":  # a question may also come as a plain dict
                        self._report("result saved", call=message.tool_call_id)

        saver.get_tuple, saver.put, saver.put_writes = observed_load, observed_put, observed_put_writes

    def run_tool(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Report a tool call and carry it out; where the parent asked for it, stop half-way instead."""
        call = request.tool_call["id"]
        self._report("tool started", call=call)
        answer = handler(request)
        running_step = self._step + 1
        if self._hold_from_step and running_step >= self._hold_from_step and call.endswith("b"):
            # The second of two calls made at once ("...b"): the first one's result may be saved meanwhile.
            self._report("holding", call=call, step=running_step)
            time.sleep(_HOLD_SECONDS)
        return answer


def _since_ms(moment: float) -> float:
    return (time.perf_counter() - moment) * 1000


def _reporter() -> Callable[..., None]:
    """A function that prints events as lines; the standard output then belongs to it alone."""
    lines, lock = sys.stdout, threading.Lock()
    sys.stdout = sys.stderr

    def report(event: str, **facts: Any) -> None:
        line = json.dumps({"event": event, **facts}) + "\n"
        with lock:
            lines.write(line)
            lines.flush()

    return report


def main() -> None:
    """Run the agent on a thread of a file, from the first question or from where it was."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("saver", choices=["stepwell", "sqlite"])
    parser.add_argument("path", help="the checkpointer's file")
    parser.add_argument("thread", help="the conversation's name in that file")
    parser.add_argument("rounds", type=int, help="rounds of reading that the question asks for")
    parser.add_argument("--resume", action="store_true", help="go on with what the thread holds")
    parser.add_argument("--hold-from-step", type=int, default=0, help="stop in a tool call from this step on")
    arguments = parser.parse_args()

    # Only the child needs these, and they take a second or two to import.
    from langchain.agents.middleware import wrap_tool_call

    import standard_library
    from research_agent import build_agent, first_question, saver_class

    standard_library.sources()  # read now, so that no time measured below is the reading of 10 MB of text
    report = _reporter()
    config = {"configurable": {"thread_id": arguments.thread}, "recursion_limit": 10 * arguments.rounds + 100}
    question = {"messages": [{"role": "user", "content": first_question(arguments.rounds)}]}

    saver_type = saver_class(arguments.saver)
    observer = _Observer(report, arguments.hold_from_step)  # its clock starts here, with all imports done
    with saver_type.from_conn_string(arguments.path) as saver:
        observer.watch(saver)
        agent = build_agent(saver, [wrap_tool_call(observer.run_tool)])
        began = time.perf_counter()
        # "sync": a step is on disk before the next one begins. With None for a question, LangGraph goes on
        # where the thread was.
        agent.invoke(None if arguments.resume else question, config, durability="sync")
        seconds = time.perf_counter() - began
    report("finished", seconds=seconds)


if __name__ == "__main__":
    main()
