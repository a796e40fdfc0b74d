"""Judge finished predictions on public sets: comparisons, thresholds, suspects, findings, subgroups; nothing is asserted.

    CXR_DATA=<folder> python tests/benchmarks/judgement.py kermany=<predictions.csv of a study> radiography=<another> \
        nih_none=<folder with valid.csv and test.csv> nih_shipped=<another>

Writes into nbs/results what the chapters on intervals, thresholds, comparison, subgroups and errors read: numbers only. The
subgroups need ChestX-ray14's own table, so CXR_DATA; without it they are left as they are.
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from cxr_learn.comparison import compare, holm
from cxr_learn.curves import roc_curve
from cxr_learn.errors import label_suspects
from cxr_learn.intervals import all_measures, evaluate
from cxr_learn.measures import classes_of, read_predictions
from cxr_learn.public_sets import find_collection, load_cohort
from cxr_learn.subgroups import subgroup_table
from cxr_learn.thresholds import against_rest, choose_thresholds

RESULTS = Path(__file__).parents[2]/'nbs/results'
CNN, RESNET = 'custom CNN', 'resnet18, shipped, k = 0'
OVERALL = ('macro_auc', 'accuracy', 'macro_sensitivity', 'macro_f1', 'mcc', 'macro_average_precision', 'log_loss', 'brier',
           'calibration_error')
RESAMPLES = {'kermany': 10_000, 'radiography': 4_000}  # Kermany's p-values lie near the limit
HALVINGS = 200
SUBGROUPS = dict(by=('sex', 'age_band', 'view'), labels=['No Finding', 'Infiltration', 'Atelectasis', 'Effusion'], resamples=4000)

def write(table, name): table.to_csv(RESULTS/f'{name}.csv', index=False, float_format='%.6g')

def seeds_of(predictions, model, split):
    "The tables of a model, seed by seed"
    rows = predictions[(predictions['model'] == model) & (predictions['split'] == split)]
    return {int(seed): table.drop(columns=['model', 'seed', 'split']).reset_index(drop=True) for seed, table in rows.groupby('seed')}

def compare_networks(predictions, name):
    "ResNet-18 minus the custom CNN on the test images, all measures"
    cnn, resnet = (list(seeds_of(predictions, model, 'test').values()) for model in (CNN, RESNET))
    classes = classes_of(cnn[0])
    of_class = ('sensitivity', 'specificity') if len(classes) == 2 else ('sensitivity', 'auc')
    asked = [*OVERALL, *((measure, label) for label in (classes[1:] if len(classes) == 2 else classes) for measure in of_class)]
    table = compare(resnet, cnn, asked, resamples=RESAMPLES[name], seed=0)
    for column, (title, tables) in enumerate((('custom_cnn', cnn), ('resnet18', resnet)), start=2):
        measured = [all_measures(one, np.ones((1, len(one)))) for one in tables]
        keys = zip(table['measure'], table['label'])
        table.insert(column, title, [np.mean([one[key][0] for one in measured]) for key in keys])
    table.insert(table.columns.get_loc('p_value') + 1, 'p_corrected', holm(table['p_value']))
    write(table.assign(images=len(cnn[0]), resamples=RESAMPLES[name], bootstrap_seed=0, numpy=np.__version__,
                       scipy=scipy.__version__), f'comparison_{name}')

def most_accurate(positive, score):
    "The highest of the thresholds with the best accuracy"
    false_alarms, sensitivity, thresholds = roc_curve(positive, score)
    right = sensitivity * positive.sum() + (1 - false_alarms) * (~positive).sum()
    return thresholds[right.round(6).argmax()]

def accuracy(positive, score, threshold): return ((score >= threshold) == positive).mean()

def choose_on_the_wrong_set(predictions):
    "What a threshold gains when it is chosen on the very images that it is judged on"
    rows = []
    for model in (CNN, RESNET):
        for seed, test in seeds_of(predictions, model, 'test').items():
            valid = against_rest(seeds_of(predictions, model, 'valid')[seed], 'pneumonia')[:2]
            positive, score, patients = against_rest(test, 'pneumonia')
            random, halves = np.random.default_rng(0), []
            everyone = pd.unique(patients)
            for _ in range(HALVINGS):
                mine = np.isin(patients, random.permutation(everyone)[:len(everyone) // 2])
                chosen = most_accurate(positive[mine], score[mine])
                halves.append([accuracy(positive[part], score[part], chosen) for part in (mine, ~mine)])
            on_valid, on_test = most_accurate(*valid), most_accurate(positive, score)
            rows.append(dict(model=model, seed=seed, images=len(test), patients=len(everyone), at_half=accuracy(positive, score, .5),
                             validation_threshold=on_valid, at_validation_threshold=accuracy(positive, score, on_valid),
                             test_threshold=on_test, at_test_threshold=accuracy(positive, score, on_test),
                             chosen_half=np.mean(halves, axis=0)[0], other_half=np.mean(halves, axis=0)[1], halvings=HALVINGS,
                             versions=f'numpy {np.__version__}, pandas {pd.__version__}'))
    write(pd.DataFrame(rows), 'thresholds_kermany')

def count_suspects(predictions):
    "How many labels are suspect, by split and label"
    rows = []
    for split in ('valid', 'test'):
        for seed, table in seeds_of(predictions, RESNET, split).items():
            suspects = label_suspects(table)['label'].value_counts()
            rows += [dict(model=RESNET, seed=seed, split=split, label=label, images=int((table['label'] == label).sum()),
                          suspects=int(suspects.get(label, 0))) for label in classes_of(table)]
    write(pd.DataFrame(rows), 'suspects_kermany')

def judge_findings(folders):
    "Several findings per image: every measure; for the shipped weights also thresholds and subgroups"
    parts = []
    for weights, folder in folders.items():
        valid, test = (read_predictions(Path(folder)/f'{split}.csv') for split in ('valid', 'test'))
        thresholds = choose_thresholds(valid)
        scores = evaluate(test, thresholds)
        parts.append(scores.assign(model=weights, network='resnet18', seed=0, resamples=1000, numpy=np.__version__,
                                   pandas=pd.__version__))
        if weights != 'shipped': continue
        at = scores[scores['measure'].isin(['sensitivity_at_threshold', 'specificity_at_threshold']) & (scores['label'] != 'all')]
        counts = {label: pd.Series(against_rest(valid, label)[2][against_rest(valid, label)[0]]).nunique() for label in set(at['label'])}
        at = at.assign(validation_positive_patients=at['label'].map(counts), threshold=at['label'].map(thresholds), seed=0,
                       versions=f'numpy {np.__version__}, pandas {pd.__version__}')
        write(at.drop(columns='reason'), 'thresholds_nih')
        if find_collection('nih_chestxray14') is None: continue
        cohort = load_cohort('nih_chestxray14', find_collection('nih_chestxray14'))
        table = subgroup_table(test, cohort, thresholds=thresholds, **SUBGROUPS)
        write(table.assign(seed=0, versions=f'numpy {np.__version__}, pandas {pd.__version__}'), 'subgroups_nih')
    write(pd.concat(parts), 'nih_findings')

if __name__ == '__main__':
    named = dict(argument.split('=', 1) for argument in sys.argv[1:])
    for name in ('kermany', 'radiography'):
        if name not in named: continue
        predictions = read_predictions(named[name])
        compare_networks(predictions, name)
        if name == 'kermany': choose_on_the_wrong_set(predictions); count_suspects(predictions)
    findings = {name.removeprefix('nih_'): folder for name, folder in named.items() if name.startswith('nih_')}
    if findings: judge_findings(findings)
