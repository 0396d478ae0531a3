"""Webhooks: whoever cannot wait for a person is told when an answer is final, cancelled or expired.

    a person decides ──► one transaction: label, log row, message (`gateway.store.outbox`)
                                                              │ due when the decision cannot be taken back any more
      `deliver`: due messages; `post`: signed anew (`signing`), to an address that is allowed (`addresses`)
                                                              │
        2xx: delivered     410: dead     anything else: again later, dead after the last attempt

Messages are events (`events`): CloudEvents in structured JSON, signed as Standard Webhooks has it; the event's id is
the webhook's id. They arrive once or more, in any order.

Sources: Standard Webhooks 1.0.0; CloudEvents 1.0.2 and its HTTP binding.
"""
