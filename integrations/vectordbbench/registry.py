"""CoreNN in the registry of VectorDBBench, which is a closed enumeration."""

from vectordb_bench.backend.clients import DB

NAME = "CoreNN"


def register() -> DB:
    """Add the member `DB.CoreNN` and its three classes, in this process; a second call changes nothing.

    Call it before anything else of vectordb_bench is imported, so that its models know the member, too. A released
    client would be a member like all others; this stands in for it as long as CoreNN is not in their repository.
    """
    from corenn_client import CoreNN, CoreNNConfig, CoreNNIndexConfig

    if NAME in DB.__members__:
        return DB[NAME]
    member = object.__new__(DB)
    member._name_ = member._value_ = NAME
    member.__objclass__ = DB
    member._sort_order_ = len(DB)
    DB._member_names_.append(NAME)
    DB._member_map_[NAME] = member
    DB._value2member_map_[NAME] = member
    for attribute, ours in {"init_cls": CoreNN, "config_cls": CoreNNConfig}.items():
        setattr(DB, attribute, _property(getattr(DB, attribute), member, ours))
    theirs = DB.case_config_cls
    DB.case_config_cls = lambda db, kind=None: CoreNNIndexConfig if db is member else theirs(db, kind)
    return member


def _property(theirs: property, member: DB, ours: type) -> property:
    return property(lambda db: ours if db is member else theirs.fget(db))
