//! Random images over a tiny alphabet, so that names collide all the time.
//!
//! One seed gives one image, forever on every machine: the seed in a failing test's message is enough to repeat it.

use crate::entry::{EntryKind, EntrySpec, blk, chr, dir, fifo, file, hardlink, opaque, symlink, whiteout};
use crate::model::{LowerSymlinks, Model, Options, RootEntry};
use crate::tree::Kind;

/// A xorshift generator: one seed gives the same numbers forever.
pub struct Rng(u64);

impl Rng {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Rng {
        // Spreads neighbouring seeds and never starts at zero.
        Rng(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Returns a number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Returns true in `p` of 100 cases.
    pub fn percent(&mut self, p: usize) -> bool {
        self.below(100) < p
    }

    /// Returns one of `from`, which has some.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "lib", "usr"];

/// A random image with the choices it is meant for.
#[derive(Debug, Clone)]
pub struct RandomImage {
    /// Half of all images have the default ones.
    pub options: Options,
    /// Layers, bottom first.
    pub layers: Vec<Vec<EntrySpec>>,
}

/// Makes an image with its options; nine in ten are such that these options take them.
pub fn random_case(seed: u64) -> RandomImage {
    let mut rng = Rng::new(seed ^ 0x0f0f_0f0f_0f0f_0f0f);
    let mut options = Options::default();
    if rng.percent(50) {
        options.strict = rng.percent(30);
        options.root_entry = *rng.pick(&[RootEntry::Ignore, RootEntry::Apply]);
        options.lower_symlinks = *rng.pick(&[LowerSymlinks::Resolve, LowerSymlinks::Shadow]);
        options.selinux_keep = rng.percent(50);
    }
    RandomImage { options, layers: random_image_for(seed, options) }
}

/// Makes an image: 1 to 6 layers of 1 to 14 entries, bottom first.
///
/// Nine images in ten are such that the default options take them.
pub fn random_image(seed: u64) -> Vec<Vec<EntrySpec>> {
    random_image_for(seed, Options::default())
}

/// Makes an image as [`random_image`] does, where nine in ten are such that these options take them.
pub fn random_image_for(seed: u64, options: Options) -> Vec<Vec<EntrySpec>> {
    let mut rng = Rng::new(seed);
    let free = rng.percent(10);
    let style = Style::of(&mut rng);
    let mut below = Model::new(options);
    let mut layers: Vec<Vec<EntrySpec>> = Vec::new();
    for _ in 0..1 + rng.below(6) {
        if !layers.is_empty() && rng.percent(12) {
            // The same layer twice, or more often, in one image.
            let again = rng.pick(&layers).clone();
            let mut next = below.clone();
            if free || next.apply(&again).is_ok() {
                below = next;
                layers.push(again);
                continue;
            }
        }
        let layer = layer(&mut rng, style, &[&below], free);
        if below.apply(&layer).is_err() && !free {
            unreachable!("every prefix of the layer was applied");
        }
        layers.push(layer);
    }
    layers
}

/// Makes one layer that may stand on any of the trees `below`: every name it uses may come from any of them.
///
/// All of them take it.
pub fn random_layer_on(seed: u64, below: &[&Model]) -> Vec<EntrySpec> {
    let mut rng = Rng::new(seed);
    let style = Style::of(&mut rng);
    layer(&mut rng, style, below, false)
}

/// What kind of image it is.
#[derive(Clone, Copy)]
struct Style {
    /// Devices, and xattrs that only root of the first user namespace may set.
    privileged: bool,
    /// Percent of the names that lead through a symlink of a lower layer.
    through: usize,
}

impl Style {
    fn of(rng: &mut Rng) -> Style {
        Style { privileged: rng.percent(35), through: *rng.pick(&[0, 10, 40]) }
    }
}

fn layer(rng: &mut Rng, style: Style, below: &[&Model], free: bool) -> Vec<EntrySpec> {
    let mut layer: Vec<EntrySpec> = Vec::new();
    for _ in 0..1 + rng.below(14) {
        let from = *rng.pick(below);
        layer.push(entry(rng, style, from, &layer));
        // A refused layer is told by its last entry, or by an earlier link that waits for what never comes.
        if !free && below.iter().any(|model| (*model).clone().apply(&layer).is_err()) {
            layer.pop();
        }
    }
    layer
}

fn entry(rng: &mut Rng, style: Style, below: &Model, layer: &[EntrySpec]) -> EntrySpec {
    let path = name(rng, style, below, layer);
    let entry = match rng.below(100) {
        0..=25 => file(&path, format!("content {}", rng.below(1000))),
        26..=44 => dir(format!("{path}/")),
        45..=56 => symlink(&path, target(rng)),
        57..=69 => hardlink(&path, link_target(rng, style, below, layer)),
        70..=81 => {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            whiteout(parent, name)
        }
        82..=89 => {
            let parent =
                path.rsplit_once('/').map_or(if rng.percent(15) { "" } else { &path[..] }, |(parent, _)| parent);
            opaque(parent)
        }
        90..=92 => fifo(&path),
        93 if style.privileged => chr(&path, 1, 3),
        94 if style.privileged => blk(&path, 7, 1),
        93 | 94 => file(format!(".wh..wh.plnk/{}", rng.below(3)), "kept by AUFS"),
        95 => chr(&path, 0, 0),
        96 => dir(*rng.pick(&["./", ".", "/"])),
        97 => hardlink(&path, format!(".wh..wh.plnk/{}", rng.below(3))),
        98 => file(format!(".wh.{path}/x"), ""),
        _ => file(format!("../{path}"), "clamped"),
    };
    metadata(rng, style, entry)
}

fn metadata(rng: &mut Rng, style: Style, mut entry: EntrySpec) -> EntrySpec {
    entry = entry.mtime_nanos(1_000_000 + rng.below(1000) as i64, *rng.pick(&[0, 0, 0, 123_456_789]));
    if rng.percent(40) {
        entry = entry.mode(*rng.pick(&[0o600, 0o644, 0o700, 0o711, 0o755, 0o1777, 0o2755, 0o4755]));
    }
    if rng.percent(30) {
        entry = entry.owner(rng.below(4) as u64, rng.below(4) as u64);
    }
    if rng.percent(12) {
        entry = entry.xattr(*rng.pick(&["user.a", "user.b"]), *rng.pick(&["1", "2", ""]));
    }
    if rng.percent(6) {
        entry = entry.xattr(*rng.pick(&["user.overlay.opaque", "user.overlay.whiteout", "user.overlay.a"]), "y");
    }
    if rng.percent(6) {
        let (name, value) = *rng.pick(&[
            ("trusted.overlay.opaque", "y"),
            ("trusted.overlay.redirect", "/a"),
            ("trusted.overlay.metacopy", ""),
            ("trusted.overlay.whiteout", ""),
        ]);
        entry = entry.xattr(name, value);
    }
    if rng.percent(4) {
        entry = entry.xattr("security.selinux", "system_u:object_r:x_t:s0");
    }
    if style.privileged && rng.percent(8) {
        entry = entry.xattr("trusted.a", *rng.pick(&["1", "2"]));
    }
    entry
}

/// A path of up to four components, rarely of eight; often one below what is there already.
fn name(rng: &mut Rng, style: Style, below: &Model, layer: &[EntrySpec]) -> String {
    if rng.percent(style.through)
        && let Some(path) = through_a_symlink(rng, below)
    {
        return path;
    }
    if rng.percent(45) {
        let mut known = known(below, layer, |_| true);
        known.retain(|path| !path.is_empty());
        if !known.is_empty() {
            let path = rng.pick(&known).clone();
            let depth = path.split('/').count();
            return if rng.percent(50) && depth < 4 { format!("{path}/{}", rng.pick(&NAMES)) } else { path };
        }
    }
    let depth = *rng.pick(&[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 8]);
    let names: Vec<&str> = (0..depth).map(|_| *rng.pick(&NAMES)).collect();
    names.join("/")
}

/// A name below a symlink of a lower layer, mostly of something that is there.
fn through_a_symlink(rng: &mut Rng, below: &Model) -> Option<String> {
    let tree = below.tree();
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let links: Vec<(&Vec<u8>, &Vec<u8>)> = tree
        .0
        .iter()
        .filter_map(|(path, node)| if let Kind::Symlink(target) = &node.kind { Some((path, target)) } else { None })
        .collect();
    if links.is_empty() {
        return None;
    }
    let (link, target) = *rng.pick(&links);
    // Where a simple target leads; anything else gets a name by chance.
    let parent = link.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &link[..at]);
    let base = match target.strip_prefix(b"/") {
        Some(rest) => rest.to_vec(),
        None if parent.is_empty() => target.clone(),
        None => [parent, b"/", target].concat(),
    };
    let inside = [&base[..], b"/"].concat();
    let children: Vec<&[u8]> = tree.0.keys().filter_map(|path| path.strip_prefix(&inside[..])).collect();
    let name = if children.is_empty() || rng.percent(30) {
        (*rng.pick(&NAMES)).to_string()
    } else {
        text(rng.pick::<&[u8]>(&children))
    };
    Some(format!("{}/{name}", text(link)))
}

/// A symlink target: relative, absolute, with `..`, dangling, or a loop by chance.
fn target(rng: &mut Rng) -> String {
    let names: Vec<&str> = (0..1 + rng.below(2)).map(|_| *rng.pick(&NAMES)).collect();
    let path = names.join("/");
    match rng.below(10) {
        0..=4 => path,
        5..=6 => format!("/{path}"),
        7 => format!("../{path}"),
        8 => format!("{path}/../{}", rng.pick(&NAMES)),
        _ => (*rng.pick(&["/", "..", ".", "../../.."])).to_string(),
    }
}

/// A hard link's target: mostly something that exists, or will; often one name of a group, or one behind a symlink.
fn link_target(rng: &mut Rng, style: Style, below: &Model, layer: &[EntrySpec]) -> String {
    if rng.percent(style.through / 2)
        && let Some(path) = through_a_symlink(rng, below)
    {
        return path;
    }
    if rng.percent(20) {
        let tree = below.tree();
        let groups: Vec<&Vec<u8>> =
            tree.0.iter().filter(|(_, node)| node.link.is_some()).map(|(path, _)| path).collect();
        if !groups.is_empty() {
            return String::from_utf8_lossy(rng.pick::<&Vec<u8>>(&groups)).into_owned();
        }
    }
    let known = known(below, layer, |kind| *kind != Kind::Dir);
    match () {
        () if !known.is_empty() && rng.percent(85) => {
            let path = rng.pick(&known);
            if rng.percent(10) { format!("/./{path}") } else { path.clone() }
        }
        () => {
            let names: Vec<&str> = (0..1 + rng.below(2)).map(|_| *rng.pick(&NAMES)).collect();
            names.join("/")
        }
    }
}

/// Names that exist below or were written down in this layer.
fn known(below: &Model, layer: &[EntrySpec], of: impl Fn(&Kind) -> bool) -> Vec<String> {
    let there = below.tree().0.into_iter().filter(|(_, node)| of(&node.kind)).map(|(path, _)| path);
    let kind = |entry: &EntrySpec| if entry.kind == EntryKind::Dir { Kind::Dir } else { Kind::Fifo };
    let here = layer.iter().filter(|entry| of(&kind(entry))).map(|entry| entry.path.clone());
    let text =
        |path: Vec<u8>| String::from_utf8(path).expect("the alphabet is ASCII").trim_end_matches('/').to_string();
    let plain = |path: &String| !path.contains(".wh.") && !path.contains("..") && !matches!(&path[..], "." | "./" | "");
    there.chain(here).map(text).filter(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_image() {
        assert_eq!(random_image(7), random_image(7));
        assert_ne!(random_image(7), random_image(8));
    }

    #[test]
    fn most_images_are_taken_and_every_kind_occurs() {
        let (mut taken, mut kinds, mut late) = (0, std::collections::HashSet::new(), 0);
        for seed in 0..300 {
            let image = random_image(seed);
            assert!((1..=6).contains(&image.len()));
            for (i, entry) in image.iter().flat_map(|layer| layer.iter().enumerate()) {
                kinds.insert(std::mem::discriminant(&entry.kind));
                late += usize::from(i > 8);
            }
            taken += usize::from(Model::of_image(Options::default(), &image).is_ok());
        }
        assert!((255..300).contains(&taken), "{taken} of 300");
        assert_eq!(kinds.len(), 7);
        assert!(late > 300, "layers are too short: {late}");
    }
}
