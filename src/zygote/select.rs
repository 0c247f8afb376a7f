//! Which node serves a function. Pure: no I/O, no clock.
//!
//! SOCK's rule (Oakes et al., USENIX ATC 2018, section 4): only a node whose packages are a
//! subset of the function's; here the modules below them too. Among those, the one that saves the most
//! import time.

use std::cmp::Reverse;

use super::snapshot::Owner;
use super::{Modules, Pins};

/// A node, as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub id: u64,
    /// Everything that can have been imported in it, ancestors included.
    pub closure: &'a Pins,
    /// Modules below its packages' top level that it was told to import, ancestors included.
    pub modules: &'a Modules,
    /// Measured import time, ancestors included, in µs; `None` before it was grown.
    pub import_us: Option<u64>,
    /// It may not fork.
    pub unfit: bool,
    /// Whose alone it is; its handler is imported then.
    pub owner: Option<&'a Owner>,
}

/// A function, as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    pub pins: &'a Pins,
    /// Modules that it imports by itself before its handler is called.
    pub modules: &'a Modules,
    /// Owner of the snapshot node that may be chosen beside those for all.
    pub owner: Option<&'a Owner>,
}

/// The best node for a function; `None` if none fits. A node that is somebody's own
/// serves nobody else, and is the best there is for them. A node that was never
/// grown counts as saving more than any measured one: growing it is how it is measured.
pub fn best<'a>(candidates: impl IntoIterator<Item = Candidate<'a>>, asking: &Asking<'_>) -> Option<u64> {
    let fits: Vec<_> = candidates
        .into_iter()
        .filter(|candidate| !candidate.unfit && candidate.closure.is_subset(asking.pins))
        .filter(|candidate| candidate.modules.is_subset(asking.modules))
        .filter(|candidate| candidate.owner.is_none() || candidate.owner == asking.owner)
        .collect();
    let best = fits.iter().max_by_key(|candidate| {
        let saved = candidate.import_us.unwrap_or(u64::MAX);
        (candidate.owner.is_some(), saved, candidate.closure.len(), Reverse(candidate.id))
    })?;
    // One that has imported more of the same packages saves more, however the two were measured.
    let more = fits.iter().filter(|other| {
        (other.closure, other.owner) == (best.closure, best.owner) && other.modules.is_superset(best.modules)
    });
    more.max_by_key(|other| (other.modules.len(), Reverse(other.id))).map(|other| other.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    static NONE: Modules = Modules::new();

    fn pins(texts: &[&str]) -> Pins {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn node(id: u64, closure: &Pins, import_us: Option<u64>) -> Candidate<'_> {
        Candidate { id, closure, modules: &NONE, import_us, unfit: false, owner: None }
    }

    fn best_for<'a>(
        nodes: impl IntoIterator<Item = Candidate<'a>>,
        pins: &Pins,
        owner: Option<&Owner>,
    ) -> Option<u64> {
        best(nodes, &Asking { pins, modules: &NONE, owner })
    }

    #[test]
    fn a_node_with_a_package_that_was_not_asked_for_never_serves() {
        let (empty, both) = (pins(&[]), pins(&["numpy==2.1.0", "six==1.16.0"]));
        let nodes = [node(0, &empty, Some(0)), node(1, &both, Some(900))];
        assert_eq!(best_for(nodes, &pins(&["numpy==2.1.0"]), None), Some(0));
    }

    #[test]
    fn another_version_is_another_package() {
        let (empty, old) = (pins(&[]), pins(&["numpy==1.26.4"]));
        let nodes = [node(0, &empty, Some(0)), node(1, &old, Some(900))];
        assert_eq!(best_for(nodes, &pins(&["numpy==2.1.0"]), None), Some(0));
    }

    #[test]
    fn the_node_that_saves_most_import_time_wins_not_the_first_nor_the_largest() {
        let (slow, many) = (pins(&["pandas==2.2.3"]), pins(&["six==1.16.0", "idna==3.7"]));
        let nodes = [node(1, &many, Some(20)), node(2, &slow, Some(700))];
        let asked = pins(&["pandas==2.2.3", "six==1.16.0", "idna==3.7"]);
        assert_eq!(best_for(nodes, &asked, None), Some(2));
    }

    #[test]
    fn an_unfit_node_is_passed_over() {
        let (empty, numpy) = (pins(&[]), pins(&["numpy==2.1.0"]));
        let unfit = Candidate { unfit: true, ..node(1, &numpy, Some(900)) };
        assert_eq!(best_for([node(0, &empty, Some(0)), unfit], &numpy, None), Some(0));
    }

    #[test]
    fn a_function_s_own_node_serves_its_version_alone_and_best() {
        let owner =
            |function: &str, version: &str| Owner { function: function.into(), version: version.into() };
        let (empty, numpy, mine) = (pins(&[]), pins(&["numpy==2.1.0"]), owner("f", "1"));
        let own = Candidate { owner: Some(&mine), ..node(2, &numpy, Some(5)) };
        let nodes = [node(0, &empty, Some(0)), node(1, &numpy, None), own];
        assert_eq!(best_for(nodes, &numpy, Some(&mine)), Some(2));
        for other in [Some(owner("g", "1")), Some(owner("f", "2")), None] {
            assert_eq!(best_for(nodes, &numpy, other.as_ref()), Some(1), "{other:?}");
        }
        // Not even where nothing else is left.
        assert_eq!(best_for([own], &numpy, None), None);
        assert_eq!(best_for([own], &empty, Some(&mine)), None, "the subset rule stays");
    }

    #[test]
    fn a_node_with_a_module_that_the_function_does_not_import_never_serves() {
        let modules = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Modules>();
        let (numpy, random, both) =
            (pins(&["numpy==2.1.0"]), modules(&["numpy.random"]), modules(&["numpy.fft", "numpy.random"]));
        let below = |id, modules, import_us| Candidate { modules, ..node(id, &numpy, Some(import_us)) };
        let nodes = [node(1, &numpy, Some(900)), below(2, &random, 905), below(3, &both, 907)];
        let chosen = |own: &Modules| best(nodes, &Asking { pins: &numpy, modules: own, owner: None });
        assert_eq!(chosen(&NONE), Some(1));
        assert_eq!(chosen(&random), Some(2));
        assert_eq!(chosen(&both), Some(3));
        assert_eq!(chosen(&modules(&["numpy.fft"])), Some(1));
        // Not even where nothing else is left.
        assert_eq!(best([nodes[1]], &Asking { pins: &numpy, modules: &NONE, owner: None }), None);
        let asked = Asking { pins: &pins(&[]), modules: &both, owner: None };
        assert_eq!(best(nodes, &asked), None, "the rule of packages stays");
    }

    #[test]
    fn a_node_that_imported_more_of_the_same_packages_wins_whatever_was_measured() {
        let numpy = pins(&["numpy==2.1.0"]);
        let modules = |names: &[&str]| -> Modules { names.iter().map(|name| (*name).to_owned()).collect() };
        let (some, all) = (modules(&["numpy.fft"]), modules(&["numpy.fft", "numpy.random"]));
        let less = Candidate { modules: &some, ..node(1, &numpy, Some(900)) };
        let more = Candidate { modules: &all, ..node(2, &numpy, Some(800)) };
        let asking = Asking { pins: &numpy, modules: &all, owner: None };
        assert_eq!(best([less, more], &asking), Some(2));
        assert_eq!(best([less, more], &Asking { modules: &some, ..asking }), Some(1));
    }
}
