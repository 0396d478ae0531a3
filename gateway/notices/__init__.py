"""Notices: reviewers are told of new and due work, by webhook or by mail.

    reviews ──► a rule's round comes: what it has not told of yet becomes one message (`gateway.store.notices`)
                                                                  │ `tell`, every second
                                                                  ▼
    `gateway.webhooks.deliver`: to a webhook as an event, to mailboxes by SMTP (`mail`); retried, dead-lettered alike

A message tells how many reviews wait, and nothing of what is in them. However many there are, a rule sends one message
in its `digest` time; the first is sent at once.
"""
