"""One process per executor, device, checkpoint and dtype holds a model for all tasks there.

Address. A server listens on an abstract Unix socket, a name without a file (`ServerOrder.name`).
The name is lock, address and sign of life in one: the kernel gives it to one process at a time,
tells whoever connects which process and user hold it, and frees it whatever ends that process.

The protocol, packets of a JSON object each, with tensors beside them (`channel.py`):

    worker                                    server
      connect                            ->     binds its name first, then loads
                                         <-   {"alive": 1}                   each second or oftener
                                         <-   {"hello": 1}                   loaded; or
                                         <-   {"error": {"kind", "message"}}   why the load failed
      {"method", "arguments"}, tensors   ->     waits its turn: first come, first served
                                         <-   {"alive": 1}                   each second or oftener
                                         <-   {}, tensors                    the result; or
                                         <-   {"error": {"kind", "message"}}   the model's error
      {"method": "placement"}            ->
                                         <-   {"placement": {...}}
      end of file                        ->     forgets the client

Start. A client that is refused starts a server and connects again. If several do, one server gets
the name and the others exit. A client starts a bounded number of them.

Failed load. The server sends the error to all who wait, then makes itself a small process that
sends it to all who come in the next 30 seconds: Spark tries a task four times at once.

Calls. A client has one call in flight; one that sends another before its answer is disconnected.
A client may leave in the middle of a call: a call that waits is dropped, and so is the answer to
one that is computed. The server disconnects a client only for what is no message, with an error.

Hang. Keep-alives come from the thread that receives calls. A client that hears nothing within its
deadline kills the process that the kernel names. A call that takes too long in a server that is
otherwise alive ends the server; the server itself sees to that.

End. A server ends when the executor's process ends, after its idle time without a call, when its
device is broken, or when a call or its load takes too long. It removes its log, gives up its name,
and exits at once: a normal exit with torch loaded takes a second more. A client that sees an end of
file, a reset or a refusal connects again and repeats its call: calls have no effect but an answer.

Users and containers. Both sides check the user of the other; where another user holds the name, the
worker loads the model itself. Abstract names belong to a network namespace, which containers may
share: the name holds the namespace of process ids, in which an executor's id is unique.
"""
