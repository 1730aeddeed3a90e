//! Z: compression and digests. I: images, indexes, archives.

use crate::catalogue::*;

pub fn compression() -> Vec<Rule> {
    const THREE: &[Tool] = &[Containerd, Podman, Umoci];
    vec![
        rule("Z1", "Every member of a gzip file is read, empty ones too.").same(Measured, THREE),
        rule("Z2", "Zero bytes after the last gzip member are accepted and count in the layer digest.")
            .ruled(20)
            .same(Measured, &[Containerd])
            .differ(Measured, &[Podman, Umoci], "error"),
        rule("Z3", "Any other bytes after the last gzip member refuse the layer.")
            .ruled(20)
            .differ(Measured, &[Containerd], "accepted")
            .same(Measured, &[Podman, Umoci]),
        rule("Z4", "A cut or wrong trailer refuses the layer, also after the end of the tar archive.")
            .ruled(29)
            .same(Measured, THREE),
        rule("Z5", "A damaged second member behind the end of the tar archive refuses the layer.")
            .ruled(29)
            .same(Measured, THREE),
        rule("Z6", "The diff_id covers every byte: padding, garbage after the end, a missing end.")
            .same(Measured, THREE),
        rule("Z7", "An empty blob, an empty gzip file and 1,024 zeros are empty layers, each with its own diff_id.")
            .same(Measured, THREE),
        rule("Z8", "The first bytes decide the codec, not the media type; a mismatch is a warning.")
            .same(Measured, &[Containerd, Podman])
            .differ(Measured, &[Umoci], "error"),
        rule(
            "Z9",
            "A layer called plain tar that is gzip or zstd is decompressed, with a warning; xz and bzip2 are refused.",
        )
        .differ(Measured, &[Containerd], "error for the OCI type")
        .says(Measured, &[Podman], "same, and takes xz")
        .differ(Measured, &[Umoci], "error"),
        rule("Z10", "Several zstd frames and skippable frames anywhere are read; windows up to 128 MiB.")
            .ruled(30)
            .same(Measured, &[Containerd])
            .differ(Measured, &[Podman], "error: skippable frame first")
            .differ(Measured, &[Umoci], "no zstd"),
        rule("Z11", "Cut or damaged zstd refuses the layer.").same(Measured, &[Containerd, Podman]),
        rule("Z12", "A wrong diff_id refuses the layer, and nothing is published.")
            .ruled(28)
            .same(Measured, &[Containerd, Umoci])
            .differ(Measured, &[Podman], "accepted when not cached"),
        rule("Z13", "A wrong digest or size refuses the layer; one byte more than promised is read at most.")
            .ruled(29)
            .says(Source, &[Umoci], "size checked since 0.5.1"),
        rule("Z14", "sha256 and sha512 are verified; a digest is parsed before it becomes part of a path."),
        rule("Z15", "eStargz and zstd:chunked are read as plain layers; their index and landmarks are files.")
            .same(Source, &[Containerd]),
        rule("Z16", "Every optional gzip header field is read, and the header checksum verified."),
        rule("Z17", "One pass gives both digests; a stream that was not read to its end publishes nothing.").says(
            Source,
            &[Containerd],
            "blob digest when fetched",
        ),
    ]
}

pub fn images() -> Vec<Rule> {
    vec![
        rule("I1", "A layout needs `oci-layout` of version 1.0.0 and `index.json`; blobs may be missing.")
            .same(Source, &[Containerd]),
        rule("I2", "Images are chosen by tag or full name; an ambiguous or missing choice lists what is there."),
        rule(
            "I3",
            "The best platform wins: an equal variant, else the nearest older one; ties in one index go to the first.",
        )
        .says(Source, &[Containerd], "also picks the best"),
        rule("I4", "Attestation manifests are never picked."),
        rule("I5", "Indexes in indexes are followed, eight deep."),
        rule("I6", "Unknown media types are no error until such a layer is to be unpacked."),
        rule("I7", "An artifact is refused as no image."),
        rule("I8", "Data embedded in a descriptor is used, and verified like a blob."),
        rule("I9", "A document that is both index and manifest, or not what its media type says, is refused.")
            .same(Source, &[Podman]),
        rule("I10", "As many diff_ids as layers, or the image is refused.").same(Source, &[Containerd]),
        rule("I11", "`rootfs.type` must be `layers`."),
        rule("I12", "Docker's media types are read like OCI's.").same(Source, &[Containerd]),
        rule("I13", "Foreign layers are unpacked from their blobs; their `urls` are never fetched.").says(
            Source,
            &[Containerd],
            "CVE-2020-15157: sent credentials",
        ),
        rule("I14", "`docker save` archives of all ages are read in any order; links between layers must stay inside.")
            .same(Source, &[Containerd, Podman]),
        rule("I15", "An archive that is a layout too is read as a layout, unless its manifest lacks layers.").says(
            Source,
            &[Docker],
            "25.0.0 wrote such manifests",
        ),
        rule("I16", "Member names are cleaned; a document that comes twice is refused.").says(
            Source,
            &[Containerd],
            "cleans them too",
        ),
        rule("I17", "JSON is bounded (20 MiB, manifests 4 MiB); duplicate keys and invalid UTF-8 are refused.").says(
            Source,
            &[Containerd],
            "20 MiB (CVE-2023-25153)",
        ),
        rule("I18", "The chain_id is the specification's, over digests in text form.").same(Source, &[Containerd]),
        rule("I19", "An image without layers is an empty root, read-only when mounted so.").ruled(21).differ(
            Source,
            &[Containerd],
            "binds an empty directory (CVE-2026-24054)",
        ),
    ]
}
