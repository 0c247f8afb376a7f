//! Which node serves a set of pins. Pure: no I/O, no clock.
//!
//! SOCK's rule (Oakes et al., USENIX ATC 2018, section 4): only a node whose packages are a
//! subset of the function's. Among those, the one that saves the most import time.

use super::Pins;
use super::snapshot::Owner;

/// A node, as the choice sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    pub id: u64,
    /// Everything that can have been imported in it, ancestors included.
    pub closure: &'a Pins,
    /// Measured import time, ancestors included, in µs; `None` before it was grown.
    pub import_us: Option<u64>,
    /// It may not fork.
    pub unfit: bool,
    /// Whose alone it is; its handler is imported then.
    pub owner: Option<&'a Owner>,
}

/// The best node for `pins` and `owner`; `None` if none fits. A node that is somebody's own
/// serves nobody else, and is the best there is for them. A node that was never
/// grown counts as saving more than any measured one: growing it is how it is measured.
pub fn best<'a>(
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    pins: &Pins,
    owner: Option<&Owner>,
) -> Option<u64> {
    candidates
        .into_iter()
        .filter(|candidate| !candidate.unfit && candidate.closure.is_subset(pins))
        .filter(|candidate| candidate.owner.is_none() || candidate.owner == owner)
        .max_by_key(|candidate| {
            let saved = candidate.import_us.unwrap_or(u64::MAX);
            (candidate.owner.is_some(), saved, candidate.closure.len(), std::cmp::Reverse(candidate.id))
        })
        .map(|candidate| candidate.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(texts: &[&str]) -> Pins {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn node(id: u64, closure: &Pins, import_us: Option<u64>) -> Candidate<'_> {
        Candidate { id, closure, import_us, unfit: false, owner: None }
    }

    #[test]
    fn a_node_with_a_package_that_was_not_asked_for_never_serves() {
        let (empty, both) = (pins(&[]), pins(&["numpy==2.1.0", "six==1.16.0"]));
        let nodes = [node(0, &empty, Some(0)), node(1, &both, Some(900))];
        assert_eq!(best(nodes, &pins(&["numpy==2.1.0"]), None), Some(0));
    }

    #[test]
    fn another_version_is_another_package() {
        let (empty, old) = (pins(&[]), pins(&["numpy==1.26.4"]));
        let nodes = [node(0, &empty, Some(0)), node(1, &old, Some(900))];
        assert_eq!(best(nodes, &pins(&["numpy==2.1.0"]), None), Some(0));
    }

    #[test]
    fn the_node_that_saves_most_import_time_wins_not_the_first_nor_the_largest() {
        let (slow, many) = (pins(&["pandas==2.2.3"]), pins(&["six==1.16.0", "idna==3.7"]));
        let nodes = [node(1, &many, Some(20)), node(2, &slow, Some(700))];
        let asked = pins(&["pandas==2.2.3", "six==1.16.0", "idna==3.7"]);
        assert_eq!(best(nodes, &asked, None), Some(2));
    }

    #[test]
    fn an_unfit_node_is_passed_over() {
        let (empty, numpy) = (pins(&[]), pins(&["numpy==2.1.0"]));
        let unfit = Candidate { unfit: true, ..node(1, &numpy, Some(900)) };
        assert_eq!(best([node(0, &empty, Some(0)), unfit], &numpy, None), Some(0));
    }

    #[test]
    fn a_function_s_own_node_serves_its_version_alone_and_best() {
        let owner =
            |function: &str, version: &str| Owner { function: function.into(), version: version.into() };
        let (empty, numpy, mine) = (pins(&[]), pins(&["numpy==2.1.0"]), owner("f", "1"));
        let own = Candidate { owner: Some(&mine), ..node(2, &numpy, Some(5)) };
        let nodes = [node(0, &empty, Some(0)), node(1, &numpy, None), own];
        assert_eq!(best(nodes, &numpy, Some(&mine)), Some(2));
        for other in [Some(owner("g", "1")), Some(owner("f", "2")), None] {
            assert_eq!(best(nodes, &numpy, other.as_ref()), Some(1), "{other:?}");
        }
        // Not even where nothing else is left.
        assert_eq!(best([own], &numpy, None), None);
        assert_eq!(best([own], &empty, Some(&mine)), None, "the subset rule stays");
    }
}
