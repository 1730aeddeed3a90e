use super::*;
use crate::entry::*;
use std::io::Read;

/// Reads the archive back with the tar crate: name, type, link, mode, mtime, PAX records, content.
type Seen = (Vec<u8>, u8, Option<Vec<u8>>, u32, Vec<(String, Vec<u8>)>, Vec<u8>);

fn read(bytes: &[u8]) -> Vec<Seen> {
    let mut archive = ::tar::Archive::new(bytes);
    let mut seen = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut pax = Vec::new();
        if let Some(records) = entry.pax_extensions().unwrap() {
            pax =
                records.map(|r| r.unwrap()).map(|r| (r.key().unwrap().to_string(), r.value_bytes().to_vec())).collect();
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        let (kind, mode) = (header.entry_type().as_byte(), header.mode().unwrap());
        seen.push((entry.path_bytes().to_vec(), kind, entry.link_name_bytes().map(|l| l.to_vec()), mode, pax, content));
    }
    seen
}

#[test]
fn every_kind_is_read_back() {
    let long = format!("{}/{}", "p".repeat(150), "n".repeat(90));
    let longer = "x".repeat(300);
    let entries = [
        file("a", "data").mode(0o4755),
        dir("d/"),
        symlink("l", &longer),
        hardlink("h", "a"),
        chr("c", 1, 3),
        fifo("p"),
        file(&long, ""),
        file(&longer, vec![7; 513]),
    ];
    let seen = read(&layer(&entries));
    let names: Vec<&[u8]> = seen.iter().map(|s| &s.0[..]).collect();
    assert_eq!(names, [b"a", &b"d/"[..], b"l", b"h", b"c", b"p", long.as_bytes(), longer.as_bytes()]);
    assert_eq!(seen.iter().map(|s| s.1).collect::<Vec<_>>(), b"05213600");
    assert_eq!((seen[0].3, &seen[0].5[..]), (0o4755, &b"data"[..]));
    assert_eq!(seen[2].2.as_deref(), Some(longer.as_bytes()));
    assert_eq!(seen[3].2.as_deref(), Some(&b"a"[..]));
    assert!(seen[6].4.is_empty(), "a name that ustar holds needs no PAX record");
    assert_eq!(seen[7].5, vec![7; 513]);
}

#[test]
fn what_ustar_cannot_hold_is_in_pax_records() {
    let entry = file("a", "").owner(3_000_000_000, 7).mtime_nanos(-2, 500_000_000).xattr("user.k", b"\0=");
    let seen = read(&layer([&entry]));
    let record = |k: &str, v: &[u8]| (k.to_string(), v.to_vec());
    let expected = [record("uid", b"3000000000"), record("mtime", b"-1.5"), record("SCHILY.xattr.user.k", b"\0=")];
    assert_eq!(seen[0].4, expected);
}

#[test]
fn pax_lengths_count_themselves() {
    assert_eq!(pax_records(&[("a", "b")]), b"6 a=b\n");
    // A value for which writing the length with one digit more changes the length.
    for (value, start) in [(93, &b"99 k="[..]), (94, b"101 k="), (95, b"102 k=")] {
        let record = pax_records(&[("k", "v".repeat(value))]);
        assert!(record.starts_with(start));
        assert_eq!(record.len(), value + start.len() + 1);
    }
    assert_eq!(pax_records(&[("k", b"\0\n=")]), b"8 k=\0\n=\n");
}

#[test]
fn pax_times() {
    assert_eq!(pax_time(5, 0), "5");
    assert_eq!(pax_time(10, 120_000_000), "10.12");
    assert_eq!(pax_time(-2, 500_000_000), "-1.5");
    assert_eq!(pax_time(-1, 1), "-0.999999999");
    assert_eq!(pax_time(-5, 0), "-5");
    assert_eq!(pax_time(i64::MIN, 0), "-9223372036854775808");
}

#[test]
fn headers_are_raw() {
    let header = Header::new(b'0', "n").raw(field::SIZE, b" 12 ").raw(field::MAGIC, MAGIC_V7).checksum(b"junk");
    let block = header.block();
    assert_eq!(&block[124..136], b" 12 \0\0\0\0\0\0\0\0");
    assert_eq!(&block[148..156], b"junk\0\0\0\0");
    let base = Header::new(b'0', "n").base256(field::SIZE, 1 << 40).base256(field::UID, -1).block();
    assert_eq!(&base[124..136], [0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    assert_eq!(&base[108..116], [0xff; 8]);
    let high = Header::new(b'0', b"\xff");
    assert_eq!(high.sum(false) - high.sum(true), 256);
}

#[test]
fn long_gnu_names_and_global_headers() {
    let tar = TarBuilder::new()
        .gnu_long_name("n".repeat(200))
        .gnu_long_link("t".repeat(200))
        .header(&Header::new(b'2', "short").raw(field::MAGIC, MAGIC_GNU))
        .pax_global(&[("comment", "x")])
        .member(Header::new(b'0', "b"), "data");
    assert_eq!(tar.offset() % 512, 0);
    let seen = read(&tar.finish());
    assert_eq!(seen[0].0, "n".repeat(200).as_bytes());
    assert_eq!(seen[0].2, Some("t".repeat(200).into_bytes()));
    assert_eq!(seen.last().unwrap().5, b"data");
}

#[test]
fn compression_and_digest() {
    let bytes = vec![9; 100_000];
    let mut back = Vec::new();
    flate2::read::GzDecoder::new(&gzip(&bytes)[..]).read_to_end(&mut back).unwrap();
    assert_eq!(back, bytes);
    assert_eq!(::zstd::decode_all(&zstd(&bytes)[..]).unwrap(), bytes);
    assert_eq!(gzip(&bytes), gzip(&bytes));
    assert!(sha256_hex(b"").starts_with("e3b0c44298fc1c14"));
}
