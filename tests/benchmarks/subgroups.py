"""How often a table of subgroups finds a weakness: where there is none, and where one is planted.

    python tests/benchmarks/subgroups.py [COHORTS]

Scores of simulated patients (a quarter ill, one to three images each, half of the noise shared by a patient's images);
sex, age band, view and source are dealt by lot. Arms: no weakness, and AP images (40%) whose scores are less far apart.
Writes nbs/results/subgroups_chance.csv, which the chapter on subgroups reads."""
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cxr_learn.subgroups import subgroup_table

RESULTS = Path(__file__).parent.parent.parent/'nbs'/'results'
DISTANCE = 2.  # of the log-odds of ill and healthy images, in standard deviations
MEASURES = ('auc', 'sensitivity', 'specificity')

def cohort(patients, seed, weaker):
    "A table of predictions with facts; scores in AP lie `weaker` times the distance apart"
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    images, ill = len(of), (rng.random(patients) < .25)[of]
    view = np.where(rng.random(images) < .4, 'AP', 'PA')
    apart = DISTANCE * np.where(view == 'AP', weaker, 1)
    noise = (rng.normal(size=patients)[of] + rng.normal(size=images)) * np.sqrt(.5)
    p = 1 / (1 + np.exp(-DISTANCE * ((ill - .5) * apart + noise)))
    return pd.DataFrame(dict(
        image=[f'{i}.png' for i in range(images)], patient_id=of.astype(str), label=np.where(ill, 'ill', 'normal'),
        sex=rng.choice(['F', 'M'], patients)[of], age=rng.integers(18, 90, patients)[of], view=view,
        source=rng.choice(['A', 'B', 'C'], patients)[of], probability_normal=1 - p, probability_ill=p))

def arm(name, cohorts, patients, weaker):
    any_plain = any_holm = view_found = other = comparisons = 0
    for seed in range(cohorts):
        table = subgroup_table(cohort(patients, seed, weaker), measures=MEASURES, seed=seed)
        asked = table[table['p_value'].notna()]
        found = asked[asked['p_corrected'] < .05]
        groups = asked.groupby(['measure', 'fact']).size()
        comparisons += groups.where(groups != 2, 1).sum()  # two groups are one comparison
        any_plain += (asked['p_value'] < .05).any()
        any_holm += len(found) > 0
        view_found += (found['fact'] == 'view').any()
        other += (found['fact'] != 'view').any()
    return dict(arm=name, patients=patients, cohorts=cohorts, comparisons=comparisons / cohorts,
                any_uncorrected=any_plain / cohorts, any_corrected=any_holm / cohorts,
                view_found=view_found / cohorts, another_found=other / cohorts, seeds=f'0 to {cohorts - 1}',
                versions=f'numpy {np.__version__}, pandas {pd.__version__}')

if __name__ == '__main__':
    cohorts = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    rows = [arm('no weakness', cohorts, 300, 1.), arm('AP weaker', cohorts, 300, .4),
            arm('AP weaker', cohorts, 100, .4)]
    table = pd.DataFrame(rows)
    print(table.drop(columns='versions').round(3).to_string(index=False))
    table.to_csv(RESULTS/'subgroups_chance.csv', index=False)
