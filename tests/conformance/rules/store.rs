//! P: the store and its snapshots.

use crate::catalogue::*;

pub fn store() -> Vec<Rule> {
    // P1 to P8 are containerd's contract; it passes its own suite.
    let contract = |id, says| rule(id, says).same(Source, &[Containerd]);
    vec![
        contract(
            "P1",
            "A snapshot stands on a committed one or on nothing; keys and names share one namespace, none is given twice.",
        ),
        contract(
            "P2",
            "Only an active snapshot is committed, under a new name; its key then is free. A refused commit changes nothing.",
        ),
        contract("P3", "A snapshot with children is not removed; removing one leaves all others as they are."),
        contract("P4", "Of a snapshot only labels change; lists are filtered by name, parent, kind and labels."),
        contract("P5", "Usage counts a file of several names once and nothing of the parents."),
        contract("P6", "The mounts of a snapshot are the same at any time, after a reboot too."),
        contract("P7", "Cleaning up takes nothing that a record names; closing twice does no harm."),
        contract("P8", "containerd's own 21 tests of a snapshotter pass, for the library and for the command line."),
        rule(
            "P9",
            "What a command published is on disk when it returns 0; a loss of power leaves no incomplete layer.",
        )
        .says(Source, &[Containerd], "syncs when an option asks"),
        rule("P10", "A layer is unpacked once, however many processes want it; who waits takes over from who dies."),
        rule("P11", "Layers are unpacked at once; one that fails fails the image, and what was finished stays."),
        rule("P12", "What an image, a snapshot, a mount or a running command needs is not collected."),
        rule("P13", "Nothing stands under a diff_id but what had this digest; nobody but the owner enters a store."),
        rule("P14", "Unpacking a layer again gives the same tree: no time and no order of the run is in it."),
        rule("P15", "After a kill at any moment, or a full disk, the store is sound and the same command works."),
        rule("P16", "What changed in a layer since it was unpacked is found by its content and named."),
    ]
}
