"""Remote control: a policy in another process decides how a run grows, and the run goes on without it where it must.

| module | holds |
|---|---|
| `policy` | `RemotePolicy`: asks the controller, else the local default decides |
| `exchange` | one question and its answer: what is heeded, what is rejected and why |
| `service` | `Controller` and `serve`: the other side, for any number of runs |
| `messages`, `text`, `legal` | what is said, as strict JSON; which actions an observation allows |
| `seal`, `keys` | signatures and the keys for them |
| `channel`, `folder`, `redis` | how messages travel: within a process, by a folder, by Redis Streams |
| `connect` | all of it from the configuration |

Nothing of a message is looked at before its signature has been checked, and nothing in one is ever executed.
"""

from esper.control.channel import Channel, Post
from esper.control.folder import FolderChannel
from esper.control.keys import Keys
from esper.control.policy import RemotePolicy
from esper.control.service import Controller, serve

__all__ = ["Channel", "Controller", "FolderChannel", "Keys", "Post", "RemotePolicy", "serve"]
