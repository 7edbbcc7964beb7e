//! Nothing is removed that anything could want, and what nothing wants is.

use deploy_proto::push::Source;
use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

const LISTED: &str = "acme/web";

fn digest(image: u8) -> String {
    format!("sha256:{}", format!("{image:02x}").repeat(32))
}

fn id(image: u8) -> String {
    format!("id-{image}")
}

fn project(name: &str, keep: u32) -> Project {
    Project {
        keep,
        ..Project::with_defaults(name.parse().unwrap(), "/srv".into(), vec![])
    }
}

fn shop(keep: u32) -> Project {
    Project {
        images: vec!["acme/*".into()],
        ..project("shop", keep)
    }
}

/// A release of one service that runs the image of this number, tagged `vN`.
fn release(number: u32, state: ReleaseState, parent: Option<u32>, image: u8) -> Release {
    let name = format!("{LISTED}:v{image}@{}", digest(image));
    Release {
        project: "shop".parse().unwrap(),
        number: ReleaseNumber(number),
        parent: parent.map(ReleaseNumber),
        state,
        version: None,
        key: None,
        source: Source::default(),
        created_at: Timestamp::UNIX_EPOCH,
        irreversible: false,
        images: vec![ReleaseImage {
            service: "web".parse().unwrap(),
            written: name.parse().unwrap(),
            image: name.parse().unwrap(),
            image_id: None,
            changed: true,
            ran: None,
        }],
    }
}

fn here(image: u8) -> ImageHere {
    ImageHere {
        id: id(image),
        tags: vec![format!("{LISTED}:v{image}")],
        digests: vec![format!("{LISTED}@{}", digest(image))],
    }
}

fn all_here(images: impl IntoIterator<Item = u8>) -> ImagesHere {
    ImagesHere {
        images: images.into_iter().map(here).collect(),
        in_use: BTreeSet::new(),
    }
}

/// Releases 1 to 6 of the images 1 to 6; 4 failed, 6 runs.
fn six() -> Vec<Release> {
    use ReleaseState::{Failed, Live, Replaced};
    [
        (6, Live, Some(5)),
        (5, Replaced, Some(3)),
        (4, Failed, Some(3)),
        (3, Replaced, Some(2)),
        (2, Replaced, Some(1)),
        (1, Replaced, None),
    ]
    .map(|(number, state, parent)| release(number, state, parent, u8::try_from(number).unwrap()))
    .into()
}

fn numbers(releases: &BTreeSet<ReleaseNumber>) -> Vec<u32> {
    releases.iter().map(|number| number.0).collect()
}

fn removed(all: &[Records], under_way: &[Plan], here: &ImagesHere) -> Vec<String> {
    removable(&"shop".parse().unwrap(), all, under_way, here)
        .into_iter()
        .map(|removal| removal.image_id)
        .collect()
}

fn records(keep: u32) -> Vec<Records> {
    vec![Records {
        project: shop(keep),
        releases: six(),
    }]
}

#[test]
fn the_newest_that_ran_are_kept_and_the_one_before_what_runs_always() {
    for (keep, expected) in [
        (1, vec![5, 6]),
        (2, vec![5, 6]),
        (3, vec![3, 5, 6]),
        (9, vec![1, 2, 3, 5, 6]),
    ] {
        assert_eq!(numbers(&kept(&shop(keep), &six())), expected, "keep = {keep}");
    }
    // Gone back to release 2: the newest stay, and so does where the next step back leads.
    let mut back = six();
    for release in &mut back {
        release.state = match release.number.0 {
            2 => ReleaseState::Live,
            4 => ReleaseState::Failed,
            _ => ReleaseState::Replaced,
        };
    }
    assert_eq!(numbers(&kept(&shop(2), &back)), [1, 2, 5, 6]);
    assert_eq!(numbers(&kept(&shop(1), &back)), [1, 2, 6]);
}

#[test]
fn a_failed_release_stays_at_hand_until_it_is_older_than_the_kept_ones() {
    assert_eq!(numbers(&at_hand(&shop(3), &six())), [3, 4, 5, 6]);
    assert_eq!(numbers(&at_hand(&shop(2), &six())), [5, 6]);
    // However many failed since: no more than `keep`.
    let mut failing: Vec<Release> = (7..20)
        .rev()
        .map(|n| release(n, ReleaseState::Failed, Some(6), 9))
        .collect();
    failing.extend(six());
    assert_eq!(numbers(&at_hand(&shop(2), &failing)), [5, 6, 18, 19]);
    failing.insert(0, release(20, ReleaseState::Deploying, Some(6), 9));
    assert!(at_hand(&shop(2), &failing).contains(&ReleaseNumber(20)));
}

#[test]
fn what_only_older_releases_had_is_removed_and_nothing_else() {
    // 7 was never recorded by a release.
    let images = all_here(1..=7);
    assert_eq!(removed(&records(2), &[], &images), [1, 2, 3, 4].map(id));
    assert_eq!(removed(&records(3), &[], &images), [1, 2].map(id));
    assert_eq!(removed(&records(10), &[], &images), Vec::<String>::new());

    let in_use = ImagesHere {
        in_use: BTreeSet::from([id(2)]),
        ..images.clone()
    };
    assert_eq!(removed(&records(2), &[], &in_use), [1, 3, 4].map(id));

    let mut off = records(2);
    off.first_mut().unwrap().project.remove_images = false;
    assert_eq!(removed(&off, &[], &images), Vec::<String>::new());

    let mut unlisted = records(2);
    unlisted.first_mut().unwrap().project.images = vec!["other/*".into()];
    assert_eq!(removed(&unlisted, &[], &images), Vec::<String>::new());
}

#[test]
fn an_image_that_another_project_keeps_stays_and_so_does_one_that_a_deployment_is_about_to_run() {
    let mut all = records(2);
    all.push(Records {
        project: project("blog", 1),
        releases: vec![
            release(2, ReleaseState::Live, Some(1), 1),
            release(1, ReleaseState::Replaced, None, 3),
        ],
    });
    assert_eq!(removed(&all, &[], &all_here(1..=7)), [2, 4].map(id));

    let service = |old: u8, new: u8| ServicePlan {
        service: "web".parse().unwrap(),
        old: format!("{LISTED}:v{old}").parse().ok(),
        old_digest: digest(old).parse().ok(),
        old_image_id: Some(id(old)),
        old_containers: None,
        new: format!("{LISTED}:v{new}@{}", digest(new)).parse().unwrap(),
        written: format!("{LISTED}:v{new}").parse().unwrap(),
        new_image_id: None,
        old_was_well: true,
        judged_by: Vec::new(),
        platform: None,
    };
    let plan = Plan {
        project: "blog".parse().unwrap(),
        made_at: Timestamp::UNIX_EPOCH,
        from: None,
        to: ReleaseNumber(3),
        services: vec![service(1, 2)],
        unchanged: vec![service(4, 4)],
        untouched: Vec::new(),
        files: Vec::new(),
        edits: Vec::new(),
        gives_bytes_back: false,
        hooks: Vec::new(),
        warnings: Vec::new(),
        checks: Vec::new(),
    };
    assert_eq!(removed(&records(2), &[plan], &all_here(1..=7)), [3].map(id));
}

#[test]
fn an_image_with_a_name_of_somebody_elses_stays_and_so_does_what_no_registry_has() {
    for (tags, digests, gone) in [
        (vec!["acme/web:v1"], vec![1], true),
        // The tag has moved on.
        (vec![], vec![1], true),
        // Two tags of ours: releases recorded both.
        (vec!["acme/web:v1", "acme/web:v2"], vec![1], true),
        (vec!["acme/web:v1", "acme/web:golden"], vec![1], false),
        (vec!["acme/web:v1", "backup/web:v1"], vec![1], false),
        (vec!["acme/web:v1", "NOT A NAME"], vec![1], false),
        (vec!["acme/web:v1"], vec![], false),
    ] {
        let image = ImageHere {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: digests
                .iter()
                .map(|image| format!("{LISTED}@{}", digest(*image)))
                .collect(),
            ..here(1)
        };
        let images = ImagesHere {
            images: vec![image],
            in_use: BTreeSet::new(),
        };
        assert_eq!(!removed(&records(2), &[], &images).is_empty(), gone, "{tags:?}");
    }
}

#[test]
fn an_image_with_several_names_loses_all_but_one_first() {
    let image = ImageHere {
        id: id(1),
        tags: vec!["acme/web:v1".into(), "acme/web:v2".into()],
        digests: vec![
            format!("acme/mirror@{}", digest(1)),
            format!("acme/web@{}", digest(1)),
        ],
    };
    let images = ImagesHere {
        images: vec![image],
        in_use: BTreeSet::new(),
    };
    let removals = removable(&"shop".parse().unwrap(), &records(2), &[], &images);
    let [removal] = removals.as_slice() else {
        panic!("{removals:?}")
    };
    assert_eq!(
        removal.names_first,
        ["acme/web:v2".to_owned(), format!("acme/mirror@{}", digest(1))]
    );
}

#[test]
fn a_kept_release_without_its_image_is_told_and_one_that_never_ran_is_not() {
    let of = |keep, here: ImagesHere| {
        let records = records(keep).pop().unwrap();
        missing_of_kept(&records, &here)
            .iter()
            .map(|missing| (missing.release.0, missing.images.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(of(3, all_here(1..=6)), []);
    assert_eq!(of(3, all_here([1, 2, 6])), [(5, 1), (3, 1)]);
    assert_eq!(of(2, all_here([6])), [(5, 1)]);
    // Under its id it is here too, whatever became of its names.
    let mut known_by_id = records(3).pop().unwrap();
    known_by_id.releases[1].images[0].image_id = Some(id(7));
    assert_eq!(missing_of_kept(&known_by_id, &all_here([3, 6, 7])), []);
}

fn any_releases() -> impl Strategy<Value = Vec<Release>> {
    let state = prop_oneof![
        Just(ReleaseState::Replaced),
        Just(ReleaseState::Failed),
        Just(ReleaseState::Deploying),
        Just(ReleaseState::Live)
    ];
    prop::collection::vec((state, prop::option::of(0_u32..12), 0_u8..10), 0..12).prop_map(|rows| {
        rows.into_iter()
            .enumerate()
            .map(|(at, (state, parent, image))| release(u32::try_from(at).unwrap() + 1, state, parent, image))
            .rev()
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn nothing_is_removed_that_is_in_use_or_kept_or_not_ours(
        mine in any_releases(),
        others in any_releases(),
        keep in 1_u32..6,
        others_keep in 1_u32..6,
        in_use in prop::collection::btree_set(0_u8..10, 0..4),
        foreign in prop::collection::btree_set(0_u8..10, 0..4),
    ) {
        let all = [
            Records { project: shop(keep), releases: mine.clone() },
            Records { project: project("blog", others_keep), releases: others.clone() },
        ];
        let mut images = all_here(0..10);
        images.in_use = in_use.iter().copied().map(id).collect();
        for image in &mut images.images {
            if foreign.iter().any(|foreign| id(*foreign) == image.id) {
                image.tags.push("backup/web:mine".into());
            }
        }
        let has = |release: &Release, image: u8| {
            let digest: Digest = digest(image).parse().unwrap();
            release.images.iter().any(|known| known.image.digest() == Some(&digest))
        };
        let gone: BTreeSet<String> = removed(&all, &[], &images).into_iter().collect();
        for image in 0..10 {
            let is_gone = gone.contains(&id(image));
            let stays = all.iter().any(|records| {
                let at_hand = at_hand(&records.project, &records.releases);
                records.releases.iter().any(|release| at_hand.contains(&release.number) && has(release, image))
            });
            let was_ours = mine.iter().any(|release| has(release, image));
            let wanted = stays || in_use.contains(&image) || foreign.contains(&image);
            prop_assert_eq!(is_gone, was_ours && !wanted, "image {}", image);
        }
        // What can be gone back to has its image, by number and step by step.
        let newest: Vec<_> = mine.iter().filter(|release| ran(release)).take(usize::try_from(keep).unwrap()).collect();
        let live = mine.iter().find(|release| release.state == ReleaseState::Live);
        let before = live
            .and_then(|live| mine.iter().find(|release| Some(release.number) == live.parent && release.number < live.number && ran(release)));
        for release in newest.into_iter().chain(live).chain(before) {
            prop_assert!((0..10).all(|image| !has(release, image) || !gone.contains(&id(image))));
        }
    }
}
