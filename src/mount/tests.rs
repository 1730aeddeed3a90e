//! Real mounts, each in a private mount namespace of its own thread, as root and inside a user namespace.

use super::*;
use crate::policy::XattrFlavour::{Trusted, User};
use rustix::fs::{Dir, FileType, Mode};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

const IN_USERNS: &str = "UNPLY_TEST_IN_USERNS";

/// One run of a test body: a directory to work in, and the flavour that this namespace mounts.
struct Case {
    root: PathBuf,
    flavour: XattrFlavour,
}

impl Case {
    fn dir(&self, path: &str) -> PathBuf {
        let dir = self.root.join(path);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn whiteout(&self, path: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    }

    fn mark(&self, path: &str, key: &str, value: &[u8]) {
        let fd = sys::open_path_at(rustix::fs::CWD, self.root.join(path).as_os_str().as_bytes()).unwrap();
        sys::set_xattr_fd(&fd, format!("{}{key}", self.flavour.prefix()).as_bytes(), value).unwrap();
    }

    fn empty(&self) -> EmptyDirs {
        EmptyDirs::create(&self.dir("empty")).unwrap()
    }

    fn view(&self, lowers: &[&str]) -> MountPlan {
        let lowers = lowers.iter().map(|l| self.dir(l)).collect();
        MountPlan::view(lowers, self.flavour, &self.empty())
    }

    fn upper(&self) -> Upper {
        Upper { upper: self.dir("up"), work: self.dir("work") }
    }
}

/// Mounts `plan` at `CASE/mnt` on every backend in turn and looks at it.
fn on_every_backend(case: &Case, plan: &MountPlan, look: impl Fn(&Path, Backend)) {
    let target = case.dir("mnt");
    for backend in Backend::ALL {
        let attached = plan.attach_with(backend, &target).unwrap_or_else(|e| panic!("{backend:?}: {e}"));
        look(&target, backend);
        attached.detach().unwrap();
    }
}

/// Names in a directory as `getdents` gives them, sorted: phantom names show here though `stat` denies them.
fn raw_listing(dir: impl AsRef<Path>) -> Vec<String> {
    let fd = sys::open_dir(dir.as_ref()).unwrap();
    let entries = Dir::read_from(&fd).unwrap().map(|e| e.unwrap().file_name().to_str().unwrap().to_owned());
    let mut names: Vec<_> = entries.filter(|n| n != "." && n != "..").collect();
    names.sort();
    names
}

fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none_or(|v| v != "true"), "CI must run this: {why}");
    eprintln!("SKIP: {why}");
}

/// Runs `body` in a thread of its own with a private mount namespace, so that no mount outlives it.
fn with_private_mounts(flavour: XattrFlavour, body: fn(&Case)) {
    let run = move || {
        use rustix::mount::{MountPropagationFlags, mount_change};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let temp = tempfile::tempdir().unwrap();
        body(&Case { root: fs::canonicalize(temp.path()).unwrap(), flavour });
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `body` as root with both flavours, then the test `name` again inside a new user namespace.
fn everywhere(name: &str, body: fn(&Case)) {
    if std::env::var_os(IN_USERNS).is_some() {
        return with_private_mounts(User, body);
    }
    if sys::has_effective_cap_sys_admin() && !sys::in_user_namespace() {
        with_private_mounts(Trusted, body);
        with_private_mounts(User, body);
    } else {
        skip("not root of the initial user namespace");
    }
    in_user_namespace_too(name);
}

fn in_user_namespace_too(name: &str) {
    let probe = Command::new("unshare").args(["-Urm", "true"]).status();
    if !probe.is_ok_and(|s| s.success()) {
        return skip("unshare -Urm does not work here");
    }
    let name = format!("mount::tests::{name}");
    let me = std::env::current_exe().unwrap();
    let out = Command::new("unshare")
        .arg("-Urm")
        .arg(me)
        .args([&name, "--exact", "--nocapture"])
        .env(IN_USERNS, "1")
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && stdout.contains("1 passed"), "in a user namespace:\n{stdout}\n{stderr}");
}

fn numbered_layers(case: &Case, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|n| {
            case.write(&format!("l/{n}/f{n}"), "");
            case.write(&format!("l/{n}/which"), &n.to_string());
            case.root.join(format!("l/{n}"))
        })
        .collect()
}

#[test]
fn n01_n02_every_number_of_layers_up_to_500() {
    everywhere("n01_n02_every_number_of_layers_up_to_500", |case| {
        let layers = numbered_layers(case, 1000);
        let target = case.dir("mnt");
        for count in [0, 1, 2, 60, 127, 128, 129, 200, 500, 501, 502, 999, 1000] {
            let plan = MountPlan::view(layers[..count].to_vec(), case.flavour, &case.empty());
            for backend in Backend::ALL {
                let attached = match plan.attach_with(backend, &target) {
                    Ok(attached) => attached,
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::Unsupported, "{backend:?} {count}: {e}");
                        assert!(e.to_string().contains(&format!("{count} lower directories")), "{e}");
                        let most = if backend == Backend::Classic { MAX_LOWERS - 1 } else { MAX_STACKED };
                        assert!(count > most, "{backend:?} {count}: {e}");
                        assert_eq!(raw_listing(&target), [""; 0], "refused, yet mounted");
                        continue;
                    }
                };
                assert!(count <= if backend == Backend::Classic { MAX_LOWERS } else { MAX_STACKED });
                let names = raw_listing(&target);
                assert_eq!(names.iter().filter(|n| n.starts_with('f')).count(), count, "{backend:?}");
                if count > 0 {
                    assert_eq!(fs::read_to_string(target.join("which")).unwrap(), "0", "the first lower is on top");
                }
                let listed = find_mount(&target).unwrap().unwrap();
                assert_eq!((listed.fs_type.as_str(), listed.source.as_os_str()), ("overlay", OsStr::new(SOURCE)));
                if count > MAX_LOWERS {
                    assert_eq!(listed.lowers()[..499], plan.lowers[..499], "those below are an overlay of their own");
                } else if listed.names_its_layers() {
                    assert_eq!(listed.lowers(), plan.lowers, "{backend:?} {count}");
                } else {
                    assert_eq!(backend, Backend::Classic);
                }
                attached.detach().unwrap();
            }
        }
    });
}

#[test]
fn n03_n04_odd_and_long_paths() {
    everywhere("n03_n04_odd_and_long_paths", |case| {
        let long = format!("{}/{}", "p".repeat(250), "q".repeat(250));
        let names =
            ["a:b", "c,d", "e\\f", "g h", "i\nj", "k\"l", "trail\\", "::", "lowerdir=x", "\\:", "#", long.as_str()];
        let layers: Vec<PathBuf> = names.iter().map(|n| case.dir(&format!("odd/{n}"))).collect();
        for (n, layer) in layers.iter().enumerate() {
            fs::write(layer.join(format!("f{n}")), "").unwrap();
        }
        let all: Vec<String> = (0..names.len()).map(|n| format!("f{n}")).collect();
        let view = MountPlan::view(layers.clone(), case.flavour, &case.empty());
        on_every_backend(case, &view, |target, backend| {
            let mut seen = raw_listing(target);
            seen.sort_by_key(|n| n[1..].parse::<u32>().unwrap());
            assert_eq!(seen, all, "{backend:?}");
            let mount = find_mount(target).unwrap().unwrap();
            if mount.names_its_layers() {
                assert_eq!(mount.lowers(), view.lowers, "{backend:?}: {mount:?}");
            }
        });
        for name in names {
            for backend in Backend::ALL {
                let upper = Upper {
                    upper: case.dir(&format!("u/{backend:?}/{name}")),
                    work: case.dir(&format!("w/{backend:?}/{name}")),
                };
                let plan = MountPlan::writable(layers.clone(), upper.clone(), case.flavour, &case.empty());
                let attached =
                    plan.attach_with(backend, &case.dir("mnt")).unwrap_or_else(|e| panic!("{backend:?} {name:?}: {e}"));
                fs::write(case.root.join("mnt/new"), "").unwrap();
                assert!(upper.upper.join("new").exists(), "{backend:?} {name:?}");
                let mount = find_mount(attached.target()).unwrap().unwrap();
                if mount.names_its_layers() {
                    assert!(mount.uses(&upper.upper) && mount.uses(&upper.work), "{backend:?} {name:?}: {mount:?}");
                }
                assert!(!mount.uses(&case.root.join("elsewhere")));
                attached.detach().unwrap();
            }
        }
        let target = case.dir("t:a,r\\g e\nt");
        let attached = view.attach(&target).unwrap();
        assert!(overlay_mounts().unwrap().iter().any(|m| m.target == target));
        attached.detach().unwrap();
    });
}

#[test]
fn n07_a_view_refuses_writes_with_erofs() {
    everywhere("n07_a_view_refuses_writes_with_erofs", |case| {
        case.write("a/f", "x");
        for lowers in [&["a"][..], &["a", "b"], &[]] {
            let plan = case.view(lowers);
            on_every_backend(case, &plan, |target, backend| {
                let refused = |e: std::io::Error| assert_eq!(e.raw_os_error(), Some(libc::EROFS), "{backend:?}");
                refused(fs::write(target.join("new"), "").unwrap_err());
                refused(fs::create_dir(target.join("new")).unwrap_err());
                refused(fs::set_permissions(target, PermissionsExt::from_mode(0o700)).unwrap_err());
                if !lowers.is_empty() {
                    refused(fs::remove_file(target.join("f")).unwrap_err());
                    refused(fs::OpenOptions::new().write(true).open(target.join("f")).unwrap_err());
                }
                assert!(find_mount(target).unwrap().unwrap().is_read_only());
            });
        }
        assert_eq!(raw_listing(case.root.join("a")), ["f"]);
    });
}

#[test]
fn r21_r27_an_image_without_layers_has_a_plain_empty_root() {
    everywhere("r21_r27_an_image_without_layers_has_a_plain_empty_root", |case| {
        let parent = case.dir("odd-parent");
        fs::set_permissions(&parent, PermissionsExt::from_mode(0o2770)).unwrap();
        let empty = EmptyDirs::create(&parent).unwrap();
        assert_eq!(EmptyDirs::create(&parent).unwrap(), empty, "made once, adopted later");
        let plan = MountPlan::view(vec![], case.flavour, &empty);
        on_every_backend(case, &plan, |target, _| {
            let root = fs::metadata(target).unwrap();
            assert_eq!((root.mode() & 0o7777, root.mtime(), root.mtime_nsec()), (0o755, 0, 0));
            assert_eq!(raw_listing(target), [""; 0]);
        });
        fs::write(parent.join("1/x"), "").unwrap();
        assert_eq!(EmptyDirs::create(&parent).unwrap_err().kind(), ErrorKind::AlreadyExists);
    });
}

#[test]
fn n08_changes_land_in_the_upper_and_layers_stay() {
    everywhere("n08_changes_land_in_the_upper_and_layers_stay", |case| {
        for backend in Backend::ALL {
            let name = format!("{backend:?}");
            case.write(&format!("{name}/low/etc/passwd"), "low");
            case.write(&format!("{name}/low/gone"), "low");
            let upper = Upper { upper: case.dir(&format!("{name}/up")), work: case.dir(&format!("{name}/work")) };
            let lowers = vec![case.dir(&format!("{name}/low"))];
            let plan = MountPlan::writable(lowers, upper.clone(), case.flavour, &case.empty());
            let target = case.dir("mnt");
            let attached = plan.attach_with(backend, &target).unwrap();
            assert_eq!(attached.backend(), backend);
            fs::write(target.join("etc/passwd"), "changed").unwrap();
            fs::write(target.join("etc/new"), "").unwrap();
            fs::remove_file(target.join("gone")).unwrap();
            // redirect_dir=nofollow: a directory of a lower layer is not renamed by a mark but answers EXDEV.
            let renamed = fs::rename(target.join("etc"), target.join("etc2")).unwrap_err();
            assert_eq!(renamed.raw_os_error(), Some(libc::EXDEV));
            assert!(!find_mount(&target).unwrap().unwrap().is_read_only());
            attached.detach().unwrap();
            assert_eq!(raw_listing(upper.upper.join("etc")), ["new", "passwd"]);
            assert_eq!(raw_listing(&upper.upper), ["etc", "gone"]);
            assert_eq!(fs::metadata(upper.upper.join("gone")).unwrap().rdev(), 0);
            assert_eq!(fs::read_to_string(case.root.join(format!("{name}/low/etc/passwd"))).unwrap(), "low");
            let again = plan.attach_with(backend, &target).unwrap();
            assert_eq!(raw_listing(&target), ["etc"]);
            again.detach().unwrap();
        }
    });
}

#[test]
fn w10_origin_keeps_whiteouts_out_of_listings() {
    everywhere("w10_origin_keeps_whiteouts_out_of_listings", |case| {
        case.write("low/merged/gone", "");
        case.write("low/merged/kept", "");
        case.whiteout("top/merged/gone");
        case.whiteout("top/merged/never-was");
        for dir in ["top/alone", "top/alone-marked"] {
            case.whiteout(&format!("{dir}/never-was"));
            case.write(&format!("{dir}/kept"), "");
        }
        case.mark("top/merged", "origin", b"");
        case.mark("top/alone-marked", "origin", b"");
        case.whiteout("top/never-was");
        let plan = case.view(&["top", "low"]);
        on_every_backend(case, &plan, |target, _| {
            assert_eq!(raw_listing(target), ["alone", "alone-marked", "merged"]);
            assert_eq!(raw_listing(target.join("merged")), ["kept"]);
            assert_eq!(raw_listing(target.join("alone-marked")), ["kept"]);
            assert!(fs::symlink_metadata(target.join("alone-marked/never-was")).is_err());
            // Why the mark is needed: if the kernel ever filters this by itself, the mark can go.
            assert_eq!(raw_listing(target.join("alone")), ["kept", "never-was"]);
        });
        // A root that holds a whiteout and is the only layer: the empty directory below it makes it a merged one.
        let plan = case.view(&["top"]);
        on_every_backend(case, &plan, |target, _| {
            assert_eq!(raw_listing(target), ["alone", "alone-marked", "merged"]);
            assert_eq!(raw_listing(target.join("merged")), ["kept"; 0], "merged is alone now");
        });
        let plan = MountPlan::writable(vec![case.dir("top")], case.upper(), case.flavour, &case.empty());
        let attached = plan.attach(&case.dir("mnt")).unwrap();
        assert_eq!(raw_listing(attached.target()), ["alone", "alone-marked", "merged"]);
        fs::remove_dir(attached.target().join("merged")).unwrap();
        fs::remove_dir_all(attached.target().join("alone-marked")).unwrap();
        assert_eq!(raw_listing(attached.target()), ["alone"]);
        attached.detach().unwrap();
    });
}

#[test]
fn w07_opaque_hides_lower_content_but_not_at_the_root() {
    everywhere("w07_opaque_hides_lower_content_but_not_at_the_root", |case| {
        case.write("low/d/old", "");
        case.write("low/d/s/old", "");
        case.write("top/d/new", "");
        case.write("top/d/s/new", "");
        case.mark("top/d", "opaque", b"y");
        case.mark("top", "opaque", b"y");
        on_every_backend(case, &case.view(&["top", "low"]), |target, _| {
            assert_eq!(raw_listing(target.join("d")), ["new", "s"]);
            assert_eq!(raw_listing(target.join("d/s")), ["new"]);
        });
        case.write("low/root-file", "");
        on_every_backend(case, &case.view(&["top", "low"]), |target, _| {
            assert!(target.join("root-file").exists(), "the mark at a layer's root does nothing (W8)");
        });
    });
}

#[test]
fn w09_a_whiteout_inside_an_opaque_directory_shows_in_listings() {
    everywhere("w09_a_whiteout_inside_an_opaque_directory_shows_in_listings", |case| {
        case.write("low/d/gone", "");
        case.whiteout("top/d/gone");
        case.mark("top/d", "opaque", b"y");
        on_every_backend(case, &case.view(&["top", "low"]), |target, _| {
            assert_eq!(raw_listing(target.join("d")), ["gone"], "the reason not to make such whiteouts");
        });
        case.mark("top/d", "origin", b"");
        on_every_backend(case, &case.view(&["top", "low"]), |target, _| {
            assert_eq!(raw_listing(target.join("d")), [""; 0]);
        });
    });
}

#[test]
fn o06_xattr_whiteouts_need_opaque_x_and_origin_on_their_directory() {
    everywhere("o06_xattr_whiteouts_need_opaque_x_and_origin_on_their_directory", |case| {
        // In `merged*` the name exists below, the directories `alone*` exist in the top layer only.
        for dir in ["merged-x", "merged-bare", "alone-x", "alone-x-origin", "alone-origin"] {
            if dir.starts_with("merged") {
                case.write(&format!("low/{dir}/gone"), "low");
            }
            case.write(&format!("top/{dir}/gone"), "");
            case.mark(&format!("top/{dir}/gone"), "whiteout", b"");
            if dir.contains("-x") {
                case.mark(&format!("top/{dir}"), "opaque", b"x");
            }
            if dir.contains("-origin") {
                case.mark(&format!("top/{dir}"), "origin", b"");
            }
        }
        case.write("top/at-root", "");
        case.mark("top/at-root", "whiteout", b"");
        case.write("low/at-root", "low");
        let dirs = ["alone-origin", "alone-x", "alone-x-origin", "merged-bare", "merged-x"];
        let plan = case.view(&["top", "low"]);
        for root_marked in [false, true] {
            if root_marked {
                case.mark("top", "opaque", b"x");
            }
            on_every_backend(case, &plan, |target, _| {
                let phantom: Vec<_> = dirs.iter().filter(|d| raw_listing(target.join(d)) == ["gone"]).collect();
                assert_eq!(phantom, [&"alone-origin", &"alone-x", &"merged-bare"], "opaque=x and origin, or a phantom");
                let root = raw_listing(target);
                assert_eq!(root.contains(&"at-root".to_owned()), !root_marked, "a layer's root needs the mark too");
                assert!(!target.join("merged-x/gone").exists() && !target.join("at-root").exists());
                let shown = dirs.iter().any(|d| fs::symlink_metadata(target.join(d).join("gone")).is_ok());
                assert!(!shown, "hidden from lookup in any case");
            });
        }
    });
}

#[test]
fn o03_redirects_in_a_layer_are_not_followed() {
    everywhere("o03_redirects_in_a_layer_are_not_followed", |case| {
        case.write("low/secret/key", "");
        case.dir("top/alias");
        case.mark("top/alias", "redirect", b"/secret");
        on_every_backend(case, &case.view(&["top", "low"]), |target, backend| {
            assert!(!target.join("alias/key").exists(), "{backend:?}");
        });
    });
}

#[test]
fn trusted_marks_are_refused_in_a_user_namespace() {
    // There the kernel does not read trusted.*: an opaque directory would show what it hides.
    everywhere("trusted_marks_are_refused_in_a_user_namespace", |case| {
        if sys::in_user_namespace() {
            let plan = MountPlan { flavour: Trusted, ..case.view(&["a", "b"]) };
            for err in [plan.attach(&case.dir("mnt")).unwrap_err(), plan.detached().unwrap_err()] {
                assert_eq!(err.kind(), ErrorKind::Unsupported);
                assert!(err.to_string().contains("trusted.overlay."), "{err}");
            }
        }
    });
}

#[test]
fn n05_a_directory_given_twice_is_refused_by_name() {
    everywhere("n05_a_directory_given_twice_is_refused_by_name", |case| {
        let other = case.dir("b");
        let twice = case.view(&["a", "b", "a"]);
        let inside = case.view(&["a/x", "a"]);
        std::os::unix::fs::symlink(case.dir("a"), case.root.join("link")).unwrap();
        let linked = MountPlan { lowers: vec![case.root.join("link"), other, case.dir("a")], ..case.view(&["a"]) };
        for plan in [&twice, &inside] {
            assert_eq!(plan.check().unwrap_err().kind(), ErrorKind::Usage);
        }
        assert!(linked.check().is_ok());
        for backend in Backend::ALL {
            let err = linked.attach_with(backend, &case.dir("mnt")).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Usage);
            assert!(err.to_string().contains("/link") && err.to_string().contains("one directory"), "{err}");
        }
    });
}

#[test]
fn plans_that_cannot_be_meant_are_refused_before_any_call() {
    let plan = |lowers: &[&str]| MountPlan {
        lowers: lowers.iter().map(PathBuf::from).collect(),
        upper: None,
        flavour: Trusted,
        volatile: false,
    };
    for lowers in [&[][..], &["/a"], &["a", "/b"], &["/a", "/b\0c"], &["/a", "/a/b/c"]] {
        assert_eq!(plan(lowers).check().unwrap_err().kind(), ErrorKind::Usage, "{lowers:?}");
    }
    plan(&["/a", "/ab", "/a-b"]).check().unwrap();
    let upper = Upper { upper: "/s/x".into(), work: "/s/x/work".into() };
    assert!(MountPlan { upper: Some(upper), ..plan(&["/a"]) }.check().is_err());
}

#[test]
fn n04_the_text_for_mount8_is_escaped_and_mounts() {
    everywhere("n04_the_text_for_mount8_is_escaped_and_mounts", |case| {
        case.write("a:b,c\\d e/f", "");
        case.write("tail\\/g", "");
        let plan = case.view(&["a:b,c\\d e", "tail\\"]);
        let writable = MountPlan::writable(
            plan.lowers.clone(),
            Upper { upper: case.dir("u,p:\\"), work: case.dir("w,k:\\") },
            case.flavour,
            &case.empty(),
        );
        let target = case.dir("mnt");
        for plan in [&plan, &writable] {
            let text = plan.render_mount8().unwrap();
            assert!(text.contains(r"a\:b\,c\\d e:"), "{text}");
            let status =
                Command::new("mount").args(["-t", "overlay", "unply", "-o", &text]).arg(&target).status().unwrap();
            assert!(status.success(), "{text}");
            assert_eq!(raw_listing(&target), ["f", "g"]);
            let mount = find_mount(&target).unwrap().unwrap();
            assert_eq!(mount.is_read_only(), plan.upper.is_none());
            assert_eq!(mount.lowers(), plan.lowers);
            assert!(plan.directories().all(|d| mount.uses(d)), "{mount:?}");
            detach(&target).unwrap();
        }
    });
}

#[test]
fn rendered_text_states_every_option_and_refuses_what_it_cannot_say() {
    let upper = Upper { upper: "/s/u".into(), work: "/s/w".into() };
    let empty = EmptyDirs::within(Path::new("/s/empty"));
    let mut plan = MountPlan::writable(vec!["/s/1".into(), "/s/2".into()], upper, User, &empty);
    plan.volatile = true;
    assert_eq!(
        plan.render_mount8().unwrap(),
        "lowerdir=/s/1:/s/2,upperdir=/s/u,workdir=/s/w,index=off,redirect_dir=nofollow,metacopy=off,nfs_export=off,\
         xino=off,userxattr,volatile"
    );
    let view = MountPlan::view(vec!["/s/1".into()], Trusted, &empty);
    assert_eq!(
        serde_json::to_string(&view.render_containerd().unwrap()).unwrap(),
        r#"{"type":"overlay","source":"overlay","options":["ro","lowerdir=/s/1:/s/empty/0","index=off","redirect_dir=nofollow","metacopy=off","nfs_export=off","xino=off"]}"#
    );
    let refused = |lowers: Vec<PathBuf>| MountPlan::view(lowers, Trusted, &empty).render_mount8().unwrap_err();
    let bytes: &OsStr = OsStrExt::from_bytes(b"/s/\xff");
    assert!(refused(vec![PathBuf::from(bytes)]).to_string().contains("UTF-8"));
    assert!(refused(vec!["/s/a\"b".into()]).to_string().contains("quote"));
    let long = (0..500).map(|n| PathBuf::from(format!("/var/lib/store-of-layers-with-a-long-name/{n}")));
    if rustix::param::page_size() == 4096 {
        assert!(refused(long.collect()).to_string().contains("4095"));
    }
}

#[test]
fn n16_a_busy_mount_names_its_holder_and_lazy_detaches_it() {
    everywhere("n16_a_busy_mount_names_its_holder_and_lazy_detaches_it", |case| {
        case.write("a/f", "");
        let target = case.dir("mnt");
        let attached = case.view(&["a"]).attach(&target).unwrap();
        let open = fs::File::open(target.join("f")).unwrap();
        let err = detach(&target).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::Busy);
        assert!(err.to_string().contains(&format!("process {} (", std::process::id())), "{err}");
        // Released while the call waits.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(100));
                drop(open);
            });
            attached.detach().unwrap();
        });
        case.view(&["a"]).attach(&target).unwrap();
        let open = fs::File::open(target.join("f")).unwrap();
        detach_lazy(&target).unwrap();
        assert_eq!(find_mount(&target).unwrap(), None);
        drop(open);
        assert_eq!(detach(&target).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(detach(Path::new("/proc")).unwrap_err().kind(), ErrorKind::Usage, "not ours to unmount");
    });
}

#[test]
fn a_detached_mount_is_nowhere_until_it_is_moved() {
    everywhere("a_detached_mount_is_nowhere_until_it_is_moved", |case| {
        case.write("a/f", "x");
        let before = overlay_mounts().unwrap();
        let mount = case.view(&["a"]).detached().unwrap();
        assert_eq!(overlay_mounts().unwrap(), before);
        rustix::fs::statat(&mount, "f", rustix::fs::AtFlags::empty()).unwrap();
        let target = case.dir("mnt");
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", rustix::fs::CWD, &target, flags).unwrap();
        assert_eq!(raw_listing(&target), ["f"]);
        assert_eq!(overlays_using(&case.root.join("a")).unwrap().len(), 1);
        assert_eq!(overlays_using(&case.root.join("b")).unwrap().len(), 0);
        drop(mount);
        detach(&target).unwrap();
    });
}

#[test]
fn n08_n09_a_refused_upper_says_why() {
    everywhere("n08_n09_a_refused_upper_says_why", |case| {
        let target = case.dir("mnt");
        let lowers = vec![case.dir("low")];
        let plan = |upper| MountPlan::writable(lowers.clone(), upper, case.flavour, &case.empty());
        // The work directory on another file system.
        rustix::mount::mount("t", case.dir("tmpfs"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let apart = plan(Upper { upper: case.dir("up"), work: case.dir("tmpfs/work") });
        // The upper on an overlay.
        let below = case.view(&["low"]).attach(&case.dir("view")).unwrap();
        let mut nested = plan(Upper { upper: case.dir("up"), work: case.dir("work") });
        let outer = nested.attach(&target).unwrap();
        fs::create_dir(target.join("u")).unwrap();
        fs::create_dir(target.join("w")).unwrap();
        nested = plan(Upper { upper: target.join("u"), work: target.join("w") });
        let inner = case.dir("inner");
        for backend in Backend::ALL {
            let err = apart.attach_with(backend, &inner).unwrap_err();
            assert!(err.hint().unwrap().contains("on one file system"), "{err}");
            let err = nested.attach_with(backend, &inner).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Unsupported, "{err}");
            assert!(err.hint().unwrap().contains("is on overlayfs"), "{err}");
            if backend != Backend::Classic {
                assert!(err.to_string().contains("the kernel refused the mount (\"overlay: "), "{err}");
            }
        }
        outer.detach().unwrap();
        below.detach().unwrap();
        // A work directory that was mounted volatile.
        let mut volatile = plan(Upper { upper: case.dir("vu"), work: case.dir("vw") });
        volatile.volatile = true;
        volatile.attach(&target).unwrap().detach().unwrap();
        for backend in Backend::ALL {
            let err = volatile.attach_with(backend, &target).unwrap_err();
            assert!(err.hint().unwrap().contains("was mounted volatile"), "{err}");
        }
        assert!(forget_volatile(&case.dir("vw")).unwrap());
        assert!(!forget_volatile(&case.dir("vw")).unwrap());
        volatile.attach(&target).unwrap().detach().unwrap();
    });
}

#[test]
fn errors_carry_the_call_and_the_kernels_words() {
    everywhere("errors_carry_the_call_and_the_kernels_words", |case| {
        let mut plan = case.view(&["a", "b"]);
        let missing = case.root.join("missing");
        plan.lowers.push(missing.clone());
        for backend in Backend::ALL {
            let err = plan.attach_with(backend, &case.dir("mnt")).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::NotFound);
            assert!(err.to_string().contains(&format!("open(\"{}\"", missing.display())), "{err}");
        }
        // Work on another file system: only the kernel tells, and to its log rather than to the caller.
        let upper = Upper { upper: case.dir("up"), work: case.dir("tmp") };
        rustix::mount::mount("t", &upper.work, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let plan = MountPlan::writable(vec![case.dir("a")], upper, case.flavour, &case.empty());
        for backend in [Backend::MountApiFd, Backend::MountApiPath] {
            let err = plan.attach_with(backend, &case.dir("mnt")).unwrap_err().to_string();
            assert!(err.contains("FSCONFIG_CMD_CREATE) = -1 EINVAL"), "{err}");
        }
    });
}

#[test]
fn n13_the_probe_mounts_and_leaves_nothing_behind() {
    everywhere("n13_the_probe_mounts_and_leaves_nothing_behind", |case| {
        let dir = case.dir("store");
        let before = all_mounts().unwrap();
        let probe = probe_overlay(&dir, case.flavour).unwrap();
        assert!(probe.char_whiteouts && probe.opaque && probe.origin_filters && probe.writable, "{probe:?}");
        assert!(probe.xattr_whiteouts, "{probe:?}");
        assert_eq!(raw_listing(&dir), [""; 0]);
        assert_eq!(all_mounts().unwrap(), before);
        // A store inside a container: overlayfs cannot hold an upper, nor char whiteouts.
        let target = case.dir("mnt");
        let attached = MountPlan::writable(vec![], case.upper(), case.flavour, &case.empty()).attach(&target).unwrap();
        let probe = probe_overlay(&target, case.flavour).unwrap();
        assert!(!probe.writable && !probe.char_whiteouts, "{probe:?}");
        assert!(sys::probe_store(&target).unwrap().fs_type == sys::FsType::OVERLAY);
        attached.detach().unwrap();
    });
}

#[test]
fn n17_mounts_are_made_and_seen_in_the_threads_own_namespace() {
    everywhere("n17_mounts_are_made_and_seen_in_the_threads_own_namespace", |case| {
        let target = case.dir("mnt");
        let cwd = std::env::current_dir().unwrap();
        let attached = case.view(&["a", "b"]).attach(&target).unwrap();
        assert!(find_mount(&target).unwrap().is_some());
        let main = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!main.contains(target.to_str().unwrap()), "the process's other threads see it");
        assert_eq!(std::env::current_dir().unwrap(), cwd);
        attached.detach().unwrap();
    });
}

/// N2: whiteouts and opaque marks across the seam between two overlays, and writing on top of both.
#[test]
fn n02_more_than_500_layers_are_two_overlays_that_look_like_one() {
    everywhere("n02_more_than_500_layers_are_two_overlays_that_look_like_one", |case| {
        let mut layers = numbered_layers(case, 700);
        // Layer 0 is the top. The bottom holds what layers on both sides of the seam hide.
        for name in ["d/low", "e/low", "e/s/low", "gone-top", "gone-below"] {
            case.write(&format!("l/699/{name}"), "");
        }
        case.write("l/3/d/top", "");
        case.mark("l/3/d", "opaque", b"y");
        case.whiteout("l/4/gone-top");
        case.write("l/600/e/middle", "");
        case.mark("l/600/e", "opaque", b"y");
        case.whiteout("l/601/gone-below");
        fs::hard_link(case.root.join("l/650/f650"), case.root.join("l/650/linked")).unwrap();
        let empty = case.empty();
        let check = |target: &Path| {
            assert_eq!(raw_listing(target).len(), 700 + 1 + 2 + 1, "f0 to f699, which, d, e, linked");
            assert_eq!(raw_listing(target.join("d")), ["top"]);
            assert_eq!(raw_listing(target.join("e")), ["middle"]);
            assert_eq!(fs::read_to_string(target.join("which")).unwrap(), "0");
            let one = |name: &str| fs::metadata(target.join(name)).map(|m| (m.dev(), m.ino(), m.nlink())).unwrap();
            assert!(one("linked") == one("f650") && one("linked").2 == 2, "{:?} {:?}", one("linked"), one("f650"));
        };
        let target = case.dir("mnt");
        for backend in [Backend::MountApiFd, Backend::MountApiPath] {
            let view = MountPlan::view(layers.clone(), case.flavour, &empty);
            let attached = view.attach_with(backend, &target).unwrap_or_else(|e| panic!("{backend:?}: {e}"));
            check(&target);
            assert_eq!(fs::write(target.join("new"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
            attached.detach().unwrap();
            let upper = Upper { upper: case.dir(&format!("u/{backend:?}")), work: case.dir(&format!("w/{backend:?}")) };
            let attached = MountPlan::writable(layers.clone(), upper, case.flavour, &empty)
                .attach_with(backend, &target)
                .unwrap_or_else(|e| panic!("{backend:?}: {e}"));
            check(&target);
            for dir in ["d", "e"] {
                fs::remove_dir_all(target.join(dir)).unwrap();
            }
            fs::write(target.join("f650"), "changed").unwrap();
            fs::write(target.join("f1"), "changed").unwrap();
            assert_eq!(fs::read_to_string(target.join("linked")).unwrap(), "", "copied up alone (O10)");
            assert!(!target.join("d").exists());
            attached.detach().unwrap();
        }
        assert_eq!(fs::read_to_string(case.root.join("l/650/f650")).unwrap(), "", "layers stay");
        layers.truncate(501);
        let view = MountPlan::view(layers, case.flavour, &empty);
        assert_eq!(view.render_mount8().unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(view.render_containerd().unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn n06_a_single_layer_is_an_overlay_and_no_bind() {
    everywhere("n06_a_single_layer_is_an_overlay_and_no_bind", |case| {
        case.write("only/d/kept", "");
        case.whiteout("only/d/gone");
        case.whiteout("only/gone");
        case.mark("only/d", "origin", b"");
        case.mark("only/d", "opaque", b"y");
        case.mark("only", "origin", b"");
        let plan = case.view(&["only"]);
        assert_eq!(plan.lowers.len(), 2, "the second one is empty");
        on_every_backend(case, &plan, |target, backend| {
            assert_eq!(raw_listing(target), ["d"], "{backend:?}");
            assert_eq!(raw_listing(target.join("d")), ["kept"], "{backend:?}");
            assert_eq!(find_mount(target).unwrap().unwrap().fs_type, "overlay");
            let marks = crate::root::xattrs_of(sys::open_dir(&target.join("d")).unwrap()).unwrap();
            assert!(marks.is_empty(), "{backend:?}: {marks:?}");
        });
    });
}

/// The kernel lists an option only where it differs from what the module was loaded with.
#[test]
fn n10_every_option_a_host_could_preset_is_in_force() {
    everywhere("n10_every_option_a_host_could_preset_is_in_force", |case| {
        case.write("a/f", "");
        let writable = MountPlan::writable(vec![case.dir("a")], case.upper(), case.flavour, &case.empty());
        for plan in [case.view(&["a"]), writable] {
            on_every_backend(case, &plan, |target, backend| {
                let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                let line = table.lines().find(|l| l.contains(&format!(" {} ", target.display()))).unwrap();
                let shown: Vec<&str> = line.rsplit(' ').next().unwrap().split(',').collect();
                for (option, off) in [
                    ("index", "off"),
                    ("redirect_dir", "nofollow"),
                    ("metacopy", "off"),
                    ("nfs_export", "off"),
                    ("xino", "off"),
                ] {
                    let stated = shown.iter().find_map(|o| o.strip_prefix(option)?.strip_prefix('='));
                    let parameter = if option == "xino" { "xino_auto" } else { option };
                    let preset = fs::read_to_string(format!("/sys/module/overlay/parameters/{parameter}"));
                    match stated {
                        Some(value) => assert_eq!(value, off, "{backend:?} {option}: {line}"),
                        None => assert!(preset.is_ok_and(|p| p.trim() == "N"), "{backend:?} {option}: {line}"),
                    }
                }
            });
        }
    });
}

/// O9: what a caller may compare in the view, and what not.
#[test]
fn o09_hard_links_stay_one_file_and_merged_directories_count_one_link() {
    everywhere("o09_hard_links_stay_one_file_and_merged_directories_count_one_link", |case| {
        case.write("low/d/a", "x");
        fs::hard_link(case.root.join("low/d/a"), case.root.join("low/d/b")).unwrap();
        case.write("top/d/s/c", "");
        let lower = fs::metadata(case.root.join("low/d/a")).unwrap();
        on_every_backend(case, &case.view(&["top", "low"]), |target, backend| {
            let (a, b) = (fs::metadata(target.join("d/a")).unwrap(), fs::metadata(target.join("d/b")).unwrap());
            assert_eq!((a.ino(), a.dev(), a.nlink()), (b.ino(), b.dev(), 2), "{backend:?}");
            assert_eq!(a.ino(), lower.ino(), "the number is the layer's");
            assert_ne!(a.dev(), lower.dev(), "the device is not");
            assert_eq!(fs::metadata(target.join("d")).unwrap().nlink(), 1, "{backend:?}");
        });
    });
}

/// O10: `index=off`, so that an upper and its layers may be moved; the price is that copying up parts hard links.
#[test]
fn o10_a_write_parts_hard_links_of_a_layer_and_leaves_the_layer_alone() {
    everywhere("o10_a_write_parts_hard_links_of_a_layer_and_leaves_the_layer_alone", |case| {
        for backend in Backend::ALL {
            let name = format!("{backend:?}");
            case.write(&format!("{name}/low/a"), "old");
            let low = case.root.join(&name).join("low");
            fs::hard_link(low.join("a"), low.join("b")).unwrap();
            let upper = Upper { upper: case.dir(&format!("{name}/up")), work: case.dir(&format!("{name}/work")) };
            let plan = MountPlan::writable(vec![low.clone()], upper, case.flavour, &case.empty());
            let target = case.dir("mnt");
            let attached = plan.attach_with(backend, &target).unwrap();
            fs::write(target.join("a"), "new").unwrap();
            let read = |dir: &Path, name: &str| fs::read_to_string(dir.join(name)).unwrap();
            assert_eq!((read(&target, "a"), read(&target, "b")), ("new".into(), "old".into()), "{backend:?}");
            attached.detach().unwrap();
            assert_eq!((read(&low, "a"), read(&low, "b")), ("old".into(), "old".into()));
            // With an index the moved layer would be refused.
            fs::rename(&low, case.root.join(&name).join("moved")).unwrap();
            let again = MountPlan { lowers: vec![case.root.join(&name).join("moved")], ..plan };
            again.attach_with(backend, &target).unwrap().detach().unwrap();
        }
    });
}
