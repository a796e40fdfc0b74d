"""Release the assignments to students and grade what comes back.

    make assignments                                         make the student copies and check them
    python nbs/assignments/release.py --submissions FOLDER   grade FOLDER/STUDENT/ASSIGNMENT.ipynb

The masters, ASSIGNMENT/ASSIGNMENT.ipynb beside this file, are in nbgrader's format. nbgrader
gets a course directory, a database and Jupyter settings of its own, below `--out`, and leaves yours
alone. Grading runs the students' code: what you can read, write or send, that code can.
"""
import argparse
import json
import logging
import os
import shutil
import sys
import warnings
from pathlib import Path

import nbformat
import pandas as pd

HERE = Path(__file__).resolve().parent
STUDENT_COPIES = HERE/'_student'  # nbdev passes by folders that begin with an underscore
SECONDS_PER_CELL = 60
STUB = "raise NotImplementedError('Your answer is missing: replace this line with it.')"


def masters():
    "The master notebook of each assignment, by the assignment's name"
    notebooks = sorted(HERE.glob('[a-z]*/*.ipynb'))
    return {path.stem: path for path in notebooks if path.stem == path.parent.name}


def isolate(folder):
    "Keep Jupyter's settings in `folder` and to this Python; call it before nbgrader is imported"
    kernel = folder/'kernels'/'python3'
    kernel.mkdir(parents=True)
    command = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}',
               '--log-level=ERROR']
    specification = dict(argv=command, display_name='python3', language='python')
    (kernel/'kernel.json').write_text(json.dumps(specification), encoding='utf-8')
    for place in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_PATH',
                  'IPYTHONDIR'):
        os.environ[place] = str(folder)
    scripts = str(Path(sys.executable).parent)  # nbgrader calls `alembic` by its name
    os.environ['PATH'] = os.pathsep.join([scripts, os.environ.get('PATH', '')])
    warnings.filterwarnings('ignore', category=Warning, module='nbgrader')


class Course:
    "nbgrader's course directory in `folder`; the one of an earlier run is replaced"

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        if self.folder.exists():
            if not (self.folder/'jupyter'/'kernels').is_dir():
                sys.exit(f'{self.folder} was not made by this script: choose another --out.')
            shutil.rmtree(self.folder)
        isolate(self.folder/'jupyter')
        from nbgrader.coursedir import CourseDirectory
        from traitlets.config import Config
        from traitlets.log import get_logger
        self.database = f'sqlite:///{self.folder}/gradebook.db'
        self.config = Config()
        self.config.CourseDirectory.root = str(self.folder)
        self.config.CourseDirectory.db_url = self.database
        self.config.ClearSolutions.code_stub = {'python': STUB}
        self.config.OverwriteCells.add_missing_cells = True  # a deleted check comes back
        self.config.Execute.timeout = SECONDS_PER_CELL
        self.directory = CourseDirectory(config=self.config)
        log = get_logger()  # what nbgrader has to say goes into a file, not on the screen
        log.handlers = [logging.FileHandler(self.folder/'nbgrader.log', encoding='utf-8')]
        log.propagate = False

    def release(self):
        "Make the student copies; returns their paths by assignment. A faulty master is an error"
        from nbgrader.converters import GenerateAssignment
        copies = {}
        for assignment, master in masters().items():
            shutil.copytree(master.parent, self.folder/'source'/assignment,
                            ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
            self.directory.assignment_id = assignment
            GenerateAssignment(coursedir=self.directory, config=self.config).start()
            copies[assignment] = self.folder/'release'/assignment/master.name
        return copies

    def submit(self, student, notebook):
        "Hand in a notebook that is named after its assignment"
        target = self.folder/'submitted'/student/notebook.stem
        target.mkdir(parents=True)
        shutil.copy(notebook, target)

    def grade(self):
        "Grade all that was handed in: one row per assignment, student and question"
        from nbgrader.api import Gradebook
        from nbgrader.converters import Autograde
        from nbgrader.converters.base import NbGraderException
        rows = []
        for assignment in sorted({path.name for path in self.folder.glob('submitted/*/*')}):
            self.directory.assignment_id, self.directory.student_id = assignment, '*'
            try: Autograde(coursedir=self.directory, config=self.config).start()
            except NbGraderException: pass  # a submission that cannot be graded has no points below
            with Gradebook(self.database) as gradebook:
                cells = gradebook.find_notebook(assignment, assignment).grade_cells
                for folder in sorted(self.folder.glob(f'submitted/*/{assignment}')):
                    points = self._points(gradebook, assignment, folder.parent.name)
                    rows += [dict(assignment=assignment, student=folder.parent.name,
                                  question=cell.name, points=points.get(cell.name),
                                  of=cell.max_score) for cell in cells]
        return pd.DataFrame(rows)

    def _points(self, gradebook, assignment, student):
        "Points by question; none at all, which is not 0, where grading failed"
        if not (self.folder/'autograded'/student/assignment).is_dir(): return {}
        notebook = gradebook.find_submission_notebook(assignment, assignment, student)
        return {grade.name: grade.score for grade in notebook.grades}


def answers(master):
    "The source of each solution cell by its grade_id, without nbgrader's marks"
    cells = nbformat.read(master, as_version=4).cells
    return {cell.metadata.nbgrader.grade_id:
            '\n'.join(line for line in cell.source.splitlines() if '###' not in line)
            for cell in cells if cell.metadata.get('nbgrader', {}).get('solution')}


def fill(student_copy, sources, target):
    "Write the student copy with `sources`, by grade_id, in place of its cells"
    notebook = nbformat.read(student_copy, as_version=4)
    for cell in notebook.cells:
        cell.source = sources.get(cell.metadata.get('nbgrader', {}).get('grade_id'), cell.source)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def samples(copies, folder):
    "A solved and a blank submission of each assignment, written below `folder`"
    for assignment, copy in copies.items():
        for student, sources in dict(solved=answers(masters()[assignment]), blank={}).items():
            fill(copy, sources, folder/student/copy.name)
            yield folder/student/copy.name


def totals(points):
    "One row per assignment and student: the points in all, then those of each question"
    keys = ['assignment', 'student']
    total = points.groupby(keys)[['points', 'of']].sum(min_count=1)
    questions = points.pivot(index=keys, columns='question', values='points')
    return total.join(questions[points['question'].unique()]).reset_index()


def find_submissions(folder, course_folder):
    "The notebooks to grade. Raises `ValueError` where there are none, or where they would be lost"
    if course_folder.resolve() in [folder.resolve(), *folder.resolve().parents]:
        raise ValueError(f'{folder} is made anew in each run: keep submissions in another folder.')
    found, names = sorted(folder.glob('*/*.ipynb')), masters()
    for path in found:
        if path.stem not in names: print(f'{path} is left out: it is not named after an assignment')
    notebooks = [path for path in found if path.stem in names]
    if notebooks: return notebooks
    raise ValueError(f"{folder} holds no STUDENT/ASSIGNMENT.ipynb with an ASSIGNMENT of "
                     f"{', '.join(names)}: rename the notebooks.")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--submissions', type=Path, metavar='FOLDER',
                        help='holds STUDENT/ASSIGNMENT.ipynb; without it a solved and a blank '
                        'submission are graded')
    parser.add_argument('--out', type=Path, default=HERE.parents[1]/'results'/'assignments',
                        help='where the grades go, and the course directory, made anew each time')
    options = parser.parse_args()
    if options.submissions:
        try: notebooks = find_submissions(options.submissions, options.out/'course')
        except ValueError as error: parser.error(str(error))
    course = Course(options.out/'course')
    copies = course.release()
    if not options.submissions:
        STUDENT_COPIES.mkdir(exist_ok=True)
        for copy in copies.values(): shutil.copy(copy, STUDENT_COPIES)
        notebooks = list(samples(copies, options.out/'samples'))
    for notebook in notebooks: course.submit(notebook.parent.name, notebook)
    table = totals(course.grade())
    table.to_csv(options.out/'grades.csv', index=False)
    print(table.to_string(index=False, na_rep='-'))
    print(f"The points are in {options.out/'grades.csv'}, "
          f"the graded notebooks in {course.folder/'autograded'}")
    for row in table[table['points'].isna()].itertuples():
        print(f"{row.student}: {row.assignment} could not be graded, "
              f"{course.folder/'nbgrader.log'} says why")
    if not options.submissions:
        print(f'The student copies are in {STUDENT_COPIES}')
        expected = table['of'].where(table['student'] == 'solved', 0)
        if not table['points'].equals(expected):
            sys.exit('The solved submission should have all points, the blank none: mend it.')


if __name__ == '__main__': main()
