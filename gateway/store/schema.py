"""The tables, as the statements of this package see them; `migrations` builds them.

    answers ──< answer_items          what callers are told
       ├─────< answer_revisions       what has changed since they were told first
       └─────< reviews >── queues     what people are asked
                  └──< review_claims  who took it, and when
    skill_sets                        what whoever decides them must have
    idempotency_keys                  what callers have asked before (outlive their answers)
    decision_log >── writers          what was decided, hash-chained by writer (outlives its answers)
    feedback                          what turned out to be true (outlives its answers)
    opinions                          what people said of items that several are asked about (outlives its answers)
    gold_items                        items whose true label is known
    secrets                           what draws of samples follow from (append-only)
    outbox                            what is to be delivered, and was (outlives its answers)
    subjects                          whom answers are about, by keyed digests alone (outlives its answers)
    review_notices                    which reviews reviewers were told of
    notice_rounds                     when they may be told again
    canary_halts                      which versions of routes were halted last, and why
    configurations                    what replicas of a cluster have served (append-only, never forgotten)
    certificates                      what was proven of routes (append-only, never forgotten)
    certification_looks               how often labels were looked at to prove it (append-only, never forgotten)

Every state machine is held by a CHECK. Ids are hexadecimal text, ordered by time. Times are Unix seconds, except
`lease_until_s`, which is on the clock of the store's leases. Wide columns come last, where a scan need not read them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    literal_column,
    text,
)

METADATA = MetaData()


def _partial(name: str, columns: tuple[str, ...], condition: str) -> Index:
    return Index(name, *columns, sqlite_where=text(condition), postgresql_where=text(condition))


SCORED = "reason IN ('no_certificate', 'observed')"
"""Rows of the decision log about items that every stage has scored, whatever their scores: labels of these prove
something about a route. A query must hold these very words, or its planner cannot tell that the index applies."""

HANDED_OVER = "event <> 'accept'"
"""Rows of the decision log about items that went to people."""

OBSERVED = f"event = 'accept' AND {SCORED}"
"""Those of `SCORED` about items that went to nobody."""

SHOWN = "payload_sha256 IS NOT NULL"
"""Rows of the decision log that have the digest of what a person is shown."""

RULED = "event IN ('decide', 'correct', 'undo')"
"""Rows of the decision log that give an item a person's label, or take it back; of an item's, the last one holds."""

UNDECIDED = "state IN ('open', 'claimed')"
"""Reviews that somebody can still decide; as above, a query must hold these very words: `IS_UNDECIDED` does."""

EXPIRING = f"{UNDECIDED} AND expires_s IS NOT NULL"
"""Those of them that will not wait for ever."""

TO_ESCALATE = f"{UNDECIDED} AND overdue_s IS NULL"
"""Those of them that have not run out of queues to go to."""

NO_SKILLS = "[]"
"""The skills of a review that needs none of its own, as JSON."""


SECONDS = "kind IN ('first', 'second', 'adjudication')"
"""Opinions that may say how far a decision of one person can be relied on."""

GOLD_WAITING = "purpose = 'gold' AND state <> 'decided'"
"""Reviews of gold items that nobody has labelled yet."""

ERASED = "event = 'erase'"
"""Rows of the decision log that tell what was taken out of others."""

FORGOTTEN = ""
"""The content type of a payload that is kept no longer."""

OVER = "state IN ('decided', 'cancelled', 'expired') AND content_type <> ''"
"""Reviews that nobody can decide any more, and whose payload is kept."""


ANSWERS = Table(
    "answers",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("max_error", Double),
    Column("certified", Boolean, nullable=False),
    Column("closed_s", Double),  # since when no review of it is undecided; NULL while one is
    Index("answers_closed", "closed_s"),
    sqlite_with_rowid=False,
)

ANSWER_ITEMS = Table(
    "answer_items",
    METADATA,
    Column("answer_id", String(32), ForeignKey("answers.id", ondelete="CASCADE"), primary_key=True),
    Column("item", Integer, primary_key=True),
    Column("status", Text, nullable=False),
    Column("stage", Text),
    Column("label", Text),
    Column("confidence", Double),
    Column("decided_by", Text),
    Column("reason", Text),
    Column("trail", Text, nullable=False),
    Column("outputs", LargeBinary),
    CheckConstraint(
        "status IN ('final', 'provisional', 'pending', 'cancelled', 'expired')", name="answer_items_status"
    ),
)

ANSWER_REVISIONS = Table(
    "answer_revisions",
    METADATA,
    Column("answer_id", String(32), ForeignKey("answers.id", ondelete="CASCADE"), primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("revision", Integer, primary_key=True, autoincrement=False),  # that the change has made
    Column("at_s", Double, nullable=False),
    Column("event", Text, nullable=False),
    Column("actor", Text),
    Column("reason", Text),
    # What the item was before.
    Column("was_status", Text, nullable=False),
    Column("was_label", Text),
    Column("was_confidence", Double),
    Column("was_decided_by", Text),
    Column("was_outputs", LargeBinary),  # only where the change has taken them away
)

QUEUES = Table("queues", METADATA, Column("name", Text, primary_key=True))

# Every set of skills that any review needs; few, so that whoever takes one can say which of these they lack.
SKILL_SETS = Table("skill_sets", METADATA, Column("skills", Text, primary_key=True))

REVIEWS = Table(
    "reviews",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("answer_id", String(32), ForeignKey("answers.id", ondelete="CASCADE"), nullable=False),
    Column("item", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("queue", Text, ForeignKey("queues.name"), nullable=False),
    Column("due_s", Double, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("reviewer", Text),
    Column("owner", Integer),  # the writer whose process granted the lease
    Column("lease_until_s", Double),
    Column("label", Text),
    Column("purpose", Text, nullable=False, server_default="decide"),
    Column("subject", String(32)),  # whose items opinions are about; NULL: the answer
    Column("needed", Integer, nullable=False, server_default="1"),  # opinions that must agree
    Column("most", Integer, nullable=False, server_default="1"),  # opinions that are asked for
    Column("adjudicate", Text, ForeignKey("queues.name", name="reviews_adjudicate")),
    Column("adjudicating", Boolean, nullable=False, server_default=false()),
    Column("blind", Boolean, nullable=False, server_default=false()),
    Column("second", Text, nullable=False, server_default="none"),
    Column("reason", Text, nullable=False),
    Column("priority", Integer, nullable=False, server_default=text("5")),
    Column("skills", Text, nullable=False, server_default=NO_SKILLS),
    Column("moved_s", Double),  # when it came to its queue from another one; NULL: it began there
    Column("escalations", Integer, nullable=False, server_default=text("0")),
    Column("recalled", Boolean, nullable=False, server_default=false()),  # moves on when its lease ends
    Column("overdue_s", Double),  # since when there is no queue left to go to
    Column("claimed_s", Double),  # when its last fence was given
    Column("decided_s", Double),
    Column("expires_s", Double),  # NULL where it waits for a person for ever
    Column("content_type", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("proposals", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    UniqueConstraint("answer_id", "item", "purpose", name="reviews_one_an_item"),
    CheckConstraint(
        "(state = 'open' AND reviewer IS NULL AND owner IS NULL AND lease_until_s IS NULL AND label IS NULL)"
        " OR (state = 'claimed' AND reviewer IS NOT NULL AND owner IS NOT NULL AND lease_until_s IS NOT NULL"
        " AND label IS NULL)"
        " OR (state = 'decided' AND reviewer IS NOT NULL AND owner IS NULL AND lease_until_s IS NULL"
        " AND label IS NOT NULL)"
        " OR (state IN ('cancelled', 'expired') AND reviewer IS NULL AND owner IS NULL AND lease_until_s IS NULL"
        " AND label IS NULL)",
        name="reviews_state",
    ),
    CheckConstraint(
        "(purpose = 'decide' AND NOT blind) OR (purpose IN ('second', 'gold') AND subject IS NOT NULL"
        " AND second = 'none')",
        name="reviews_purpose",
    ),
    CheckConstraint("1 <= needed AND needed <= most AND (needed > 1 OR NOT adjudicating)", name="reviews_panel"),
    CheckConstraint(
        "second IN ('none', 'drawn') OR (second IN ('asked', 'given') AND state = 'decided')", name="reviews_second"
    ),
    Index("reviews_due", "tenant", "priority", "due_s", "id"),
    _partial("reviews_undecided", ("tenant", "priority", "due_s", "id"), UNDECIDED),
    # With what tells which of them to take, so that those that are passed over are not looked at.
    _partial("reviews_queued", ("tenant", "queue", "priority", "due_s", "id", "skills", "state"), UNDECIDED),
    _partial("reviews_to_escalate", ("due_s", "id"), TO_ESCALATE),
    _partial("reviews_expiring", ("expires_s", "id"), EXPIRING),
    # All that tells how fast people are, since the rows themselves may be of hundreds of kilobytes.
    _partial(
        "reviews_decided",
        ("tenant", "queue", "decided_s", "priority", "reviewer", "created_s", "moved_s", "claimed_s"),
        "state = 'decided'",
    ),
    _partial("reviews_claimed", ("reviewer", "tenant", "queue", "lease_until_s"), "state = 'claimed'"),
    _partial("reviews_gold", ("subject", "due_s"), GOLD_WAITING),
    _partial("reviews_shown", ("created_s",), OVER),
)

IS_UNDECIDED = REVIEWS.c.state.in_([literal_column("'open'"), literal_column("'claimed'")])
"""`UNDECIDED` for statements of more tables than this one."""

REVIEW_CLAIMS = Table(
    "review_claims",
    METADATA,
    Column("review_id", String(32), ForeignKey("reviews.id", ondelete="CASCADE"), primary_key=True),
    Column("fence", BigInteger, primary_key=True, autoincrement=False),
    Column("reviewer", Text, nullable=False),
    Column("at_s", Double, nullable=False),
    Column("returned_s", Double),  # when it was put back
)

IDEMPOTENCY_KEYS = Table(
    "idempotency_keys",
    METADATA,
    Column("tenant", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("owner", Integer),
    Column("lease_until_s", Double),
    Column("answer_id", String(32)),
    Column("code", Text),
    Column("message", Text, nullable=False),
    Column("expires_s", Double),  # NULL while its answer is open
    CheckConstraint(
        "(state = 'in_progress' AND owner IS NOT NULL AND lease_until_s IS NOT NULL AND answer_id IS NULL"
        " AND code IS NULL)"
        " OR (state = 'done' AND owner IS NULL AND lease_until_s IS NULL"
        " AND (answer_id IS NULL) <> (code IS NULL))",
        name="idempotency_keys_state",
    ),
    Index("idempotency_keys_answer", "answer_id"),
    Index("idempotency_keys_expires", "expires_s"),
)

WRITERS = Table(
    "writers",
    METADATA,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("opening", Integer, nullable=False),  # counts openings of the store, by whichever writer
    Column("head_seq", BigInteger, nullable=False),
    Column("head_hash", LargeBinary, nullable=False),
    Column("base_seq", BigInteger, nullable=False),  # the last row that was pruned from its chain
    Column("base_hash", LargeBinary, nullable=False),
)

DECISION_LOG = Table(
    "decision_log",
    METADATA,
    Column("chain", Integer, ForeignKey("writers.slot"), primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Double, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("answer_id", String(32), nullable=False),
    Column("item", Integer, nullable=False),
    Column("route", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("actor", Text),
    Column("label", Text),
    Column("confidence", Double),
    Column("reason", Text),
    Column("trail", Text, nullable=False),
    Column("outputs_sha256", LargeBinary),
    Column("payload_sha256", LargeBinary),
    Column("hash", LargeBinary, nullable=False),
    CheckConstraint(
        "event IN ('accept', 'defer', 'decide', 'correct', 'undo', 'cancel', 'expire', 'escalate', 'opinion', 'erase')",
        name="decision_log_event",
    ),
    # Partial: rows that prove nothing, most of them, cost no more than they did.
    _partial("decision_log_scored", ("route", "at_s"), SCORED),
    _partial("decision_log_observed", ("answer_id", "item"), OBSERVED),
    _partial("decision_log_ruled", ("answer_id", "item"), RULED),
    _partial("decision_log_handed_over", ("answer_id", "item"), HANDED_OVER),
    _partial("decision_log_shown", ("payload_sha256",), SHOWN),
    _partial("decision_log_erased", ("answer_id", "item"), ERASED),
    sqlite_with_rowid=False,
)

FEEDBACK = Table(
    "feedback",
    METADATA,
    Column("answer_id", String(32), primary_key=True),
    Column("item", Integer, primary_key=True),
    Column("source", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("at_s", Double, nullable=False),
    Index("feedback_at", "at_s"),
)

SUBJECTS = Table(
    "subjects",
    METADATA,
    Column("answer_id", String(32), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("subject", LargeBinary, nullable=False),
    Column("at_s", Double, nullable=False),
    Index("subjects_whose", "tenant", "subject"),
    Index("subjects_at", "at_s"),
)

OPINIONS = Table(
    "opinions",
    METADATA,
    Column("subject", String(32), primary_key=True),  # an answer, or a gold item
    Column("item", Integer, primary_key=True),
    Column("reviewer", Text, primary_key=True),  # so nobody gives two
    Column("number", Integer),  # which opinion on the item it is, from 1; NULL of gold items
    Column("kind", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("truth", Text),
    Column("settles", Boolean, nullable=False),
    Column("at_s", Double, nullable=False),
    UniqueConstraint("subject", "item", "number", name="opinions_one_a_number"),
    CheckConstraint(
        "(kind IN ('panel', 'first', 'second', 'adjudication') AND number IS NOT NULL AND truth IS NULL)"
        " OR (kind = 'gold' AND number IS NULL AND truth IS NOT NULL)",
        name="opinions_kind",
    ),
    Index("opinions_given", "tenant", "at_s"),
    _partial("opinions_seconds", ("route", "subject", "item"), SECONDS),
)

GOLD_ITEMS = Table(
    "gold_items",
    METADATA,
    Column("id", String(32), primary_key=True),  # of what it is: tenant, queue and payload
    Column("tenant", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("asked", Integer, nullable=False),  # how often it was put into the queue
    Column("added_s", Double, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("proposals", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Index("gold_items_least_asked", "tenant", "queue", "asked", "id"),
)

SECRETS = Table(
    "secrets",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("secret", LargeBinary, nullable=False),
)

OUTBOX = Table(
    "outbox",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("webhook", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("answer_id", String(32), nullable=False),
    Column("created_s", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_s", Double, nullable=False),
    Column("last", Text, nullable=False),
    Column("ended_s", Double),
    Column("body", Text, nullable=False),
    CheckConstraint(
        "(state = 'waiting' AND ended_s IS NULL) OR (state IN ('delivered', 'dead') AND ended_s IS NOT NULL)",
        name="outbox_state",
    ),
    _partial("outbox_due", ("webhook", "next_s", "id"), "state = 'waiting'"),
    _partial("outbox_undelivered", ("webhook", "state"), "state <> 'delivered'"),
    _partial("outbox_waiting", ("answer_id",), "state = 'waiting'"),
    Index("outbox_ended", "ended_s"),
    Index("outbox_answer", "answer_id"),
)

CERTIFICATES = Table(
    "certificates",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("route", Text, nullable=False),
    Column("max_error", Double, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("valid_until_s", Double, nullable=False),
    Column("body", Text, nullable=False),  # the certificate as JSON; `id` is its hash
    Index("certificates_route", "route", "created_s"),
)

CERTIFICATION_LOOKS = Table(
    "certification_looks",
    METADATA,
    Column("route", Text, primary_key=True),
    Column("subject", String(64), primary_key=True),
    Column("look", Integer, primary_key=True, autoincrement=False),
    Column("evidence", String(64), nullable=False),
    Column("at_s", Double, nullable=False),
)

REVIEW_NOTICES = Table(
    "review_notices",
    METADATA,
    Column("review_id", String(32), ForeignKey("reviews.id", ondelete="CASCADE"), primary_key=True),
    Column("rule", String(64), primary_key=True),
    Column("kind", Text, primary_key=True),
    CheckConstraint("kind IN ('new', 'due')", name="review_notices_kind"),
)

NOTICE_ROUNDS = Table(
    "notice_rounds",
    METADATA,
    Column("rule", String(64), primary_key=True),
    Column("next_s", Double, nullable=False),
)

CANARY_HALTS = Table(
    "canary_halts",
    METADATA,
    Column("route", Text, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("at_s", Double, nullable=False),
    Column("why", Text, nullable=False),
)

INBOX_SESSIONS = Table(
    "inbox_sessions",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("until_s", Double, nullable=False),  # when what it says matters no more
    Column("is_over", Boolean, nullable=False),
    Column("made", Text, nullable=False),  # reviews that can be taken back, with their fences, as JSON
    Index("inbox_sessions_until", "until_s"),
)

LEASES = Table(
    "leases",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("holder", BigInteger, nullable=False),  # a writer's opening
    Column("until_s", Double, nullable=False),
)

CONFIGURATIONS = Table(
    "configurations",
    METADATA,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("made_s", Double, nullable=False),
    Column("author", Text, nullable=False),
    Column("rolled_s", Double, nullable=False),
    Column("rolled_by", Text, nullable=False),
    Column("served_s", Double),
    Column("called_off", Text),
    Column("files", Text, nullable=False),  # digests by name, as JSON
    Column("document", Text, nullable=False),
    CheckConstraint("version >= 1 AND length(digest) = 64", name="configurations_identity"),
    CheckConstraint(
        "called_off IS NULL OR (called_off <> '' AND (served_s IS NULL OR served_s < rolled_s))",
        name="configurations_end",
    ),
    Index("configurations_rolled", "rolled_s"),
)
