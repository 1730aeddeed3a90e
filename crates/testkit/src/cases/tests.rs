use super::*;
use crate::model::Model;

#[test]
fn the_model_gives_what_every_case_expects() {
    let mut wrong = Vec::new();
    for case in all() {
        match (Model::of_image(case.options, &case.layers), &case.expect) {
            (Ok(model), _) => {
                let mismatches = case.mismatches(&model.tree());
                wrong.extend(mismatches.into_iter().map(|m| format!("{}: {m}", case.name)));
            }
            (Err(_), Expect::Refused) => {}
            (Err(refusal), Expect::Tree(_)) => wrong.push(format!("{}: refused: {refusal}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{} mismatches\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn names_are_unique_and_start_with_a_rule() {
    let (cases, archives) = (all(), archives());
    let all = cases.iter().map(|case| case.name).chain(archives.iter().map(|archive| archive.name));
    let names: BTreeSet<&str> = all.collect();
    assert_eq!(names.len(), cases.len() + archives.len());
    for archive in &archives {
        let rule = archive.rules.first().expect("an archive guards a rule");
        let (letter, number) = rule.split_at(1);
        assert!(
            archive.name.starts_with(&format!("{}{number:0>2}_", letter.to_lowercase())) || archive.rules.len() > 1
        );
    }
    assert!(cases.len() >= 120, "{} cases", cases.len());
    for case in &cases {
        let word = |rule: &str| {
            let rule = rule.replace('-', "").to_lowercase();
            format!("{}{:0>2}_", &rule[..1], &rule[1..])
        };
        assert!(case.rules.iter().any(|rule| case.name.starts_with(&word(rule))), "{}: {:?}", case.name, case.rules);
    }
}

#[test]
fn a_mismatch_is_seen() {
    let case = case("x", &["X"], vec![], vec![("a", f("1").mode(0o600)), ("b", d())]);
    let model = Model::of_image(Options::default(), &[vec![crate::file("a", "2"), crate::file("c", "")]]).unwrap();
    let mismatches = case.mismatches(&model.tree());
    assert_eq!(mismatches.len(), 4, "{mismatches:?}");
}
