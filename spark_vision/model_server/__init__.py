"""One process per executor, device, checkpoint and dtype holds a model for all tasks there.

Address. A server listens on an abstract Unix socket, a name without a file (`ServerConfig.name`).
The name is also the lock and the liveness check: the kernel gives it to one process at a time,
reports the pid and user of that process to clients, and frees the name when the process ends.

Protocol. Each packet is a JSON object; tensors are in shared memory (`channel.py`):

    worker                                    server
      connect                            ->     binds its name first, then loads
                                         <-   {"alive": 1}                   at least each second
                                         <-   {"hello": 1}                   loaded; or
                                         <-   {"error": {"kind", "message"}}   why the load failed
      {"method", "arguments", "alone"},
        tensors                          ->     queued: first come, first served
                                         <-   {"alive": 1}                   at least each second
                                         <-   {"begun": 1}                   only if `alone` is true
                                         <-   {}, tensors                    the result; or
                                         <-   {"error": {"kind", "message"}}   the model's error
      {"method": "placement"}            ->
                                         <-   {"placement": {...}}
      end of file                        ->     forgets the client

Start. A client whose connection is refused starts a server and connects again. If several clients
do so, one server gets the name and the others exit. A client starts a limited number of servers.

Failed load. The server sends the error to all waiting clients. It then leaves its name to a small
process that sends the error to new clients for 30 seconds, because Spark retries a task at once.

Calls. A connection has one call in flight; it is closed if its client sends another before the
answer. A worker keeps several calls in flight over several connections, so that one batch is sent
while another is computed. Waiting calls of the same kind are joined into one batch on a GPU; if
that fails, they are computed one by one, so that an error reaches only its call (`call_queue.py`).
A client may disconnect during a call: a queued call is dropped, and so is the answer to a call that
is being computed. The server disconnects a client only for an invalid message, with an error.

Copies of an image, from Arrow to a GPU: the preprocessed pixels are stacked into a batch, copied to
shared memory, then to page-locked memory of the server together with those of joined calls, and
from there to the device while another batch is computed.

Fatal calls. If the server ends, each call that was in flight is sent again as `alone`: the next
server computes it while no other call is in progress, and reports its begin. So a server that ends
again is counted against the call that it was computing, and no other. After some ends the worker
halves the batch to find the row at fault.

Hang. Keep-alives come from the thread that receives calls. A client that receives nothing within
its deadline kills the process that the kernel reports. If a call takes too long in a server that
otherwise works, the server ends itself.

End. A server ends when the executor's process ends, when it was idle for too long, when its device
is broken, or when a call or its load takes too long. It removes its log, frees its name, and exits
at once: a normal exit with torch loaded takes a second more. A client that gets an end of file, a
reset or a refusal connects again and repeats its call: calls have no side effects.

vLLM. Its engine is a child process of the server. It outlives a server that is killed, so the
server's whole process group is killed when the server ends. If the engine ends, the server does.

Users and containers. Each side checks the user of the other. If another user holds the name, the
worker loads the model itself. Abstract names belong to a network namespace, which containers may
share, so the name includes the pid namespace, in which an executor's pid is unique.
"""
