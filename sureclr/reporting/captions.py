"""Every heading, caption and sentence of the page, in the order of the page.

A sentence with {fields} is a template: `FEW.fill(n=3)` fills in a caption, and `str.format` a plain
sentence. Nothing here depends on how the page is drawn.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """A heading, and a text that says how to read what stands below it."""

    title: str
    text: str

    def fill(self, **fields: object) -> "Caption":
        """Return the caption with the fields of both templates filled in."""
        return Caption(self.title.format(**fields), self.text.format(**fields))


# --- The whole page -------------------------------------------------------------------

HEADLINE = "{loss} on {source} · {encoder} encoder · {epochs:,} epochs · seed {seed}{images}"
HEADLINE_IMAGES = " · {n:,} images embedded"
FOOTER = (
    "Made by SureCLR {version} from results.json, metrics.jsonl, embeddings.parquet and map.parquet"
    " of the run. The page computes nothing and loads nothing from a network."
)
IMAGES_ABSENT = "Images are not shown: {why}"
RESULTS_ABSENT = "No evaluation is shown: {why}"
NOT_EVALUATED = "Evaluations that were missing could not be made: {why}"
MISSING_RESULT = "“{name}” has not been evaluated yet. Run `sureclr evaluate {run}`."
SKIPPED_RESULT = "“{name}” could not be evaluated: {why}"
OTHER_CHECKPOINT = (
    "This page shows the checkpoint of step {step:,}, which is not the last one of the run; the"
    " curves are of the whole training."
)
EXTENDED = "The run was extended after epoch {epoch:,} ({part}), where its curves may bend."
OTHER_PIXELS = (
    "their pixels are not those that the stored results were made of; evaluate the run again."
)
STALE_RESULT = (
    "the stored result was made of other weights than those shown here; evaluate it again."
)
DAMAGED_RESULT = "the stored result is damaged ({why}); evaluate it again."
STALE_TABLE = (
    "The embeddings are left out: embeddings.parquet was made of other weights than those"
    " shown here. Run `sureclr evaluate {run}`."
)
STALE_MAP = (
    "The map is left out: map.parquet was made of other weights or images than the run folder and"
    " embeddings.parquet hold. Run `sureclr evaluate {run}`."
)
NO_MAP_FILE = "The map is left out: {why}"
CHANGED_CONFIGURATION = (
    "config.yaml was changed after training ({names}); the page shows what the checkpoint recorded."
)
CHANGED_FILE = "{file} was changed or damaged: it does not match its checksum, and is not shown."
LACKING_LINES = (
    "metrics.jsonl lacks {n} of the steps that were trained; its curves have gaps there."
)
FOREIGN_LINES = (
    "metrics.jsonl is that of another run (its loss at step {step:,} is not that of the"
    " checkpoint), and so are the curves on this page; put the run's own file back."
)
INTERVAL = "95 % interval {low} to {high}"
SPAN = "{low} to {high}"
VERDICTS = {
    "better": "better than {rival}, outside both intervals",
    "worse": "worse than {rival}, outside both intervals",
    "no difference found": "not found to differ from {rival}, because the intervals overlap",
}

# --- What was trained, and how good it is ---------------------------------------------

TRAINED = Caption(
    "What was trained, and how good it is",
    "The first charts compare the encoder with the raw pixels and, where it was trained, with the"
    " same network before training. Of a network that was trained, the distance to these is what"
    " training has achieved.",
)
ACCURACY_TILE = "accuracy, {interval}"
LOSS_TILE = "nats; the loss has no natural zero and may be negative"
EPOCHS_TILE = "of {epochs:,} planned, in batches of {batch_size:,} images"
LINEAR = Caption(
    "Accuracy of a linear probe, against {rivals}",
    "A logistic regression on the frozen features predicts the class ({n_train:,} training and"
    " {n_test:,} test images). {distance} Bars are 95 % intervals.",
)
KNN = Caption(
    "Accuracy of nearest neighbours, against {rivals}",
    "The {k} nearest training images vote for the class ({n_train:,} training and {n_test:,} test"
    " images). {distance} Bars are 95 % intervals.",
)
WHITENED = (
    " Whitened features are scaled to length 1 and centred, and their principal coordinates are"
    " divided by a power of the variance; its exponent was chosen on training images ({exponent}"
    " for the encoder). Published accuracies are of features that are not whitened."
)
RIVALS = "raw pixels and {article} {first}"
RIVALS_OF_FROZEN = "raw pixels"
DISTANCE = (
    "The distance of the trained encoder to the other two points is what contrastive training has"
    " added."
)
DISTANCE_FROM_BACKBONE = (
    "The distance of the trained encoder to the backbone as it came is what contrastive training"
    " has added."
)
DISTANCE_OF_FROZEN = (
    "The encoder was frozen, so these are the accuracies of the pretrained backbone as it came, and"
    " training has added nothing to them; what its heads added stands below."
)
RIVALS_OF_TABLE = "always naming the commonest class"
DISTANCE_OF_TABLE = (
    "These are the accuracies of the table's own features, and training has added nothing to them;"
    " what its heads added stands below."
)
ACCURACY_VERDICT = " The trained encoder is {pixels}; it is {first}."
ACCURACY_VERDICT_OF_FROZEN = " The backbone is {pixels}."
MAJORITY = "commonest class"
NO_PIXELS = (
    " The raw pixels and the encoder before training are missing, because the images could not be"
    " read when this was evaluated."
)
NO_PIXELS_OF_FROZEN = (
    " The raw pixels are missing, because the images could not be read when this was evaluated."
)
HEADS = Caption(
    "What the heads added",
    "The heads turn the features of an image into a direction and a certainty. In the first chart"
    " the {k} nearest training images vote for the class of {n_test:,} test images, found by the"
    " features and by the directions; the vote by the directions is {verdict}. The second chart"
    " shows how well each score predicts that the nearest training image by the features has the"
    " right class (R-AUROC, {n_judged:,} test images). Certainty and evidence are learned by the"
    " heads; the other scores come with the features. Bars are 95 % intervals.",
)
HEADS_VOTES, HEADS_SCORES = "Nearest neighbours", "Predicting mistakes"
CLASSES = Caption(
    "{what}: each class",
    "The classes with the lowest accuracy are at the top. Accuracy is the share of the test images"
    " of a class that are recognised; precision is the share of the images given this class that"
    " are of it. The mean accuracy of the classes (balanced accuracy) is {balanced}, and the mean"
    " F1 of the classes (macro F1) is {f1}. Always naming {majority}, the commonest class of the"
    " training images, would give an accuracy of {baseline}.",
)
CLASS_COLUMNS = (
    "class",
    "accuracy",
    "95 % interval",
    "test images",
    "training images",
    "precision",
    "F1",
    "most often taken for",
)
TAKEN_FOR = "{name} ({count:,})"
NO_CLASSES = (
    "The numbers of each class are missing, because an earlier version of SureCLR made this result."
    " Run `sureclr {name} {run}`."
)
ONLY_TEST = (
    "These classes have test images and no training image, so their test images count as wrong:"
    " {classes}."
)
ONLY_TRAIN = (
    "These classes have training images and no test image, so they could not be tested: {classes}."
)
MORE_CLASSES = " and {n:,} more"
CONFUSION = Caption(
    "{what}: what is taken for what",
    "Each row is a true class, and the columns, with the numbers of the rows, are the classes that"
    " were named. A number is the share of the test images of the row. A classifier without"
    " mistakes has 1 on the diagonal and 0 elsewhere.",
)
CONFUSION_WORST = " Only the {n} classes with the lowest accuracy are shown."
CONFUSION_UNTESTED = " Classes without test images have a column and no row: {classes}."
FINETUNED = Caption(
    "Fine-tuning with few labels ({labels}), against the same network from scratch",
    "The pretrained encoder was trained on with {n_labels:,} labels, the same network was trained"
    " from scratch with them, and a linear probe was fitted to the frozen features (repetitions:"
    " {seeds}; test images: {n_test:,}). The fine-tuned network is {verdict}. Bars are intervals"
    " ({interval_of}).",
)
FINETUNED_UNTESTED = (
    "Fine-tuning with few labels ({labels}): the classifier was trained and saved, and not tested:"
    " {why}"
)
FINETUNED_CLASSES = "Fine-tuned ({labels}, seed {seed})"
BLOCKS = Caption(
    "Where the classes become linearly separable",
    "The same linear probe was fitted to the output of each block of the encoder, averaged over"
    " positions; the first block is at the top. If the last block is not the best, a shallower"
    " network would be enough.",
)
HEAD = Caption(
    "Before and after the projection head",
    "The same linear probe was fitted to the features and to the {features:,} numbers of the {of},"
    " which the loss sees. The difference between the two is what the head discards.",
)
CURVES = Caption(
    "Training, step by step",
    "The loss has no natural zero, so only its change matters: is it still falling at the end?",
)
CURVES_RADIUS = " The square of the mean radius predicts the mean cosine of two views."
NO_STEPS = "metrics.jsonl has no lines, so the run has not finished a step."
CONFIGURATION = "Configuration, results and machine"
CONFIGURATION_NOTE = "Values that differ from the defaults are bold."
RESULT_MADE = "evaluated {time} in {seconds} s by SureCLR {version}"

# --- How it learned -------------------------------------------------------------------

LEARNED = Caption(
    "How it learned",
    "Each chart shows one quantity over the epochs, measured on the same training images. A curve"
    " that still moves at the right end means that longer training may help.",
)
SHAPE = Caption(
    "The shape of the representation",
    "Alignment falls as the two views of an image approach each other. Uniformity falls as images"
    " spread over the sphere. The effective rank (RankMe) is {rank_of}; if it drops to a few, the"
    " representation has collapsed. The loss is the difference of its two parts, shown at"
    " temperature {temperature} for every run: the logit of the partner, and the log of the mean"
    " exponential logit of the other images.",
)
RANK_OF_FEATURES = "the number of directions of feature space in use"
RANK_OF_DIRECTIONS = (
    "the number of dimensions that the directions use (the features of a frozen encoder never"
    " change)"
)
CLASS_CERTAINTY = Caption(
    "Certainty over time, by class{which}",
    "Each line is the mean certainty of the whole training images of one class.",
)
MOST_CERTAIN_CLASSES = ": the most certain classes"
LEAST_CERTAIN_CLASSES = ": the least certain classes"
NO_CLASS_CERTAINTY = (
    "Certainty by class is not shown: it needs labels and a loss that learns a certainty."
)
GRADIENT = Caption(
    "Which negatives carry the gradient",
    "The loss pushes an image away from each negative in proportion to the softmax weight of the"
    " negative. If few negatives are effective, most of the push comes from look-alikes. If the"
    " weight of the image's own class is above chance, the loss pushes apart images of one class.",
)
HEAVIEST = Caption(
    "The heaviest negatives of some images",
    "Each row starts with an image, the anchor. The images that it is pushed away from most follow,"
    " with their shares of the push. Do they show the same thing as the anchor? Then the push"
    " is a mistake.",
)
ANCHOR_ROW = "Anchor {number}"

# --- What it sees ---------------------------------------------------------------------

SEEN = Caption(
    "What it sees",
    "Each point of the map is an image. Images that lie close together look similar to the encoder."
    " Point at one to see it and its nearest neighbours.",
)
MAP = Caption(
    "The map of {n:,} images",
    "Drag to move, scroll or pinch to zoom, point at an image to see it, click to select it. On the"
    " keyboard, the arrows move, + and \N{MINUS SIGN} zoom, 0 shows all images, Enter selects the"
    " image nearest to the cross, and Escape clears the selection. The search field finds images by"
    " name, label or row.",
)
MAP_LABEL = (
    "Map of {n:,} images. The arrows move, plus and minus zoom, Enter selects the nearest image."
)
MAP_SCRIPT = "The map needs the script of this page, which is switched off here."
NO_MAP = "There is no map of the images yet. Run `sureclr evaluate {run}`."
OTHER_MAP = (
    "map.parquet does not belong to embeddings.parquet. Delete both, and results.json, and run"
    " `sureclr evaluate {run}` again."
)
NO_COLOUR = "The map cannot be coloured by {colour}: {why}."
NO_LABEL_COLOUR = "no image on it has a label"
NO_CERTAINTY_COLOUR = "this loss learns no certainty (`--loss sure` does)"
NO_CLUSTER_COLOUR = "map.parquet has no clusters"
NO_CORRECT_COLOUR = "without labelled training images no vote can be right or wrong"
DIRECTIONS = Caption(
    "What the main directions mean",
    "The main directions are the principal axes of the features. The images at the two ends of an"
    " axis show what it encodes: whatever differs between the low and the high end.",
)
DIRECTION_LOW = "Axis {number} ({facts}): low end"
DIRECTION_HIGH = "High end"
DIRECTION_SHARE = "{share} of the variance"
DIRECTION_CERTAINTY = "correlation with the certainty {correlation}"
DIRECTION_CLASSES = "classes explain {share} of it"
EXPLAINED = Caption(
    "How much of the variance the main directions hold",
    "The largest direction is on the left. A steep fall means that a few directions hold nearly all"
    " of what the features say.",
)
CLUSTERS = "k-means finds {k} clusters of {smallest:,} to {largest:,} images."
CLUSTERS_PURITY = (
    " Of the images, {purity} have the most common class of their cluster; it would be"
    " {one_cluster} if all images were in one cluster."
)
NO_UMAP = "The map has no UMAP layout: {why}."

# --- What it ignores ------------------------------------------------------------------

IGNORED = Caption(
    "What it ignores",
    "Each chart changes test images more and more strongly. A line that stays high shows a change"
    " that the encoder has learned to ignore.",
)
DIRECTION_KEPT = Caption(
    "Does the direction stay the same?",
    "The charts show the cosine of an image and its changed copy, as a mean over {n:,} images; 1"
    " means that the change is ignored. The band is one standard deviation over images, the shaded"
    " range was used in training, and the dashed line is the mean cosine of two different images.",
)
CERTAINTY_KEPT = Caption(
    "Does the certainty fall?",
    "The charts show the mean change of the certainty, in standard deviations over unchanged"
    " images. A change that hides content should lower it; a change that hides nothing should leave"
    " it at zero.",
)
IN_TRAINING, NOT_IN_TRAINING = "{label}, used in training", "{label}, not used in training"
NO_CERTAINTY_KEPT = "This loss learns no certainty, so only directions and features are shown."
NOT_MEASURED = "These changes were not measured: {changes}."

# --- How certain it is ----------------------------------------------------------------

CERTAIN = Caption(
    "How certain it is, and whether that is right",
    "The learned certainty is the blue circle in every chart. Familiarity, the similarities and the"
    " norm come with any encoder at no extra cost; where they do better, use them.",
)
EXTREMES = Caption(
    "The most and the least certain images",
    "{which} images are sorted by certainty; label and certainty stand below each image.{follows}",
)
FOLLOWS = (
    " In this run the certainty follows the {name} of a picture most (rank correlation {value};"
    " {others})."
)
MOST_CERTAIN, LEAST_CERTAIN = "Most certain", "Least certain"
NO_TABLE = "There is no table of embeddings yet. Run `sureclr evaluate {run}`."
NO_CERTAINTY = "This loss learns no certainty, so the charts below show only the other scores."
INFORMATION = Caption(
    "What an image tells about its latent point",
    "The posterior of an image narrows down the latent point that the image stands for. Information"
    " measures by how much: 0 nats say nothing, and every additional nat means e times fewer"
    " possibilities. An image at the median tells {median} nats about its latent point, which has"
    " {dimension:,} coordinates.",
)
INFORMATION_MEDIAN = "nats; the mean is {mean}"
INFORMATION_LOW = "nats; 5 % of the images have less"
INFORMATION_HIGH = "nats; 5 % of the images have more"
SCORES = Caption(
    "The certainty compared with other scores",
    "R-AUROC measures how well a score separates images whose nearest training image has the right"
    " class from the other images (1 is perfect, ½ is chance). Spearman's correlation is that of a"
    " score with how little an image was corrupted (1 means that the score always falls as the"
    " corruption grows).",
)
SAMPLED = (
    "The numbers below are of {n:,} of the {of:,} test images, in a sample that is always the same."
    " Their neighbours are searched among all training images, and evidence is against at most"
    " 5,000 of these."
)
PREDICTS_MISTAKES = "Does it predict mistakes?"
FALLS_WITH_CORRUPTION = "Does it fall as corruption grows?"
MEAN_CERTAINTY = Caption(
    "Certainty under four corruptions",
    "The charts show the mean certainty of test images that were cropped, blurred, made noisy or"
    " occluded. If it notices them, it falls from left to right; for crops it rises, because their"
    " strength is the area that remains.",
)
LESS_CERTAIN = Caption(
    "Is a corrupted image less certain than the original?",
    "The charts show the share of images whose score fell. A score that always notices the"
    " corruption reaches 1; chance is ½.",
)
SELECTIVE = Caption(
    "If the classifier may decline to answer",
    "The curves show the error rate among the images with the highest scores, from few images to"
    " all of them. The lower a curve lies, the better the score knows where the classifier fails.",
)
SELECTIVE_AREA = "Area under the curve (lower is better)"
CALIBRATION = Caption(
    "Are the predictions calibrated?",
    "On the diagonal, a prediction equals what was observed. Above it, the model was too cautious;"
    " below it, too confident. Calibrated values went through a monotone map that was fitted to"
    " training images; both kinds are judged on test images.",
)
RADIUS_CALIBRATION, EVIDENCE_CALIBRATION = (
    "The radius predicts a cosine",
    "Evidence as a probability",
)
CALIBRATION_TILE = "mean distance from the diagonal"
EVIDENCE_TOO_LARGE = (
    "The evidence is too large to be read as a log odds: the log of the mean of exp(evidence) over"
    " pairs of different images should be 0, and it is {value} (standard error {error}). Use raw"
    " evidence to rank pairs, or use the calibrated evidence."
)
EVIDENCE_TOO_SMALL = (
    "The evidence is too small to be read as a log odds: the log of the mean of exp(evidence) over"
    " pairs of different images should be 0, and it is {value} (standard error {error}). Use raw"
    " evidence to rank pairs, or use the calibrated evidence."
)
EVIDENCE_FAIR = (
    "The evidence can be read as a log odds in nats, as far as this test goes: the log of the mean"
    " of exp(evidence) over pairs of different images should be 0, and it is {value} (standard"
    " error {error})."
)
PROBE_TILE = "expected calibration error of its probabilities; its accuracy is {accuracy}"
PARTNER = Caption(
    "Does the certainty predict recognition?",
    "The nearest among the second views of {n:,} images shows the same image as a first view in"
    " {share} of the cases. The points show how well each score predicts in which (AUROC: 1 is"
    " perfect, ½ is chance).",
)
NOT_SCORED = "No {what}: {why}."
FOREIGN = Caption(
    "Is it less certain of images from elsewhere?",
    "The chart shows the AUROC of each score between the test images of the run and foreign images."
    " It is 1 if every foreign image is less certain than every test image. Below ½, foreign images"
    " look more certain, which is a warning.",
)
PEOPLE = " The second chart shows the rank correlation of each score with the agreement of people."
PEOPLE_CHART = "Is it uncertain where people disagree?"
FOREIGN_NOTE = "What else differs between foreign and test images: {notes}."
FOREIGN_SKIPPED = "These foreign images could not be used: {notes}."

# --- Why it is uncertain --------------------------------------------------------------

UNCERTAIN = Caption(
    "Why it is uncertain",
    "The maps show which parts of an image raise the certainty (blue) and which lower it (orange)."
    " Trust them only if they pass the checks above them.",
)
SANITY = Caption(
    "Can the maps of the {score} be trusted?",
    "{verdict} Maps of the same network with random weights correlate with these by {randomised}"
    " (should be near 0); maps made with another filling of the covered patches by {repeat} (should"
    " be near 1). {deletion}",
)
SANITY_PASSED = "The maps explain this run: they pass both checks ({n:,} maps)."
SANITY_FAILED = "The maps do not explain this run: they fail a check ({n:,} maps)."
DELETION = (
    "Covering the patches that the maps name lowers the score by {area} more than covering random"
    " ones (95 % interval over images {low} to {high}; it should lie above 0)."
)
DELETION_WITHOUT_INTERVAL = (
    "If the maps are right, covering the patches that they name lowers the score faster than"
    " covering random ones."
)
RAISES, LOWERS = "raises the {score}", "lowers the {score}"
CERTAINTY_MAPS = Caption(
    "Which parts raise the certainty",
    "Each patch of {patch} pixels is covered in turn. Where the map is blue, the patch raises the"
    " certainty; where it is orange, the patch lowers it. The colours of each image are scaled to"
    " its own largest change.",
)
NO_CERTAINTY_MAPS = "There are no maps of the certainty: {why}"
PAIR_MAPS = Caption(
    "Which parts show that two images are the same",
    "Above each pair of images stands its {score}. Covering a blue patch lowers it, covering an"
    " orange patch raises it.",
)
NO_PAIR_MAPS = "There are no maps of pairs of images."

# --- Two runs compared ----------------------------------------------------------------

COMPARED = Caption(
    "Two runs compared",
    "From {first} to {second}: what was set differently, which of the two is better, and how"
    " similar their representations are.",
)
DIFFERENCES = "What was set differently"
BOTH_ACCURACIES = Caption(
    "Which run is better?",
    "The chart shows the accuracy of both runs with 95 % intervals. Where the intervals overlap"
    " widely, the test set is too small to tell which run is better.",
)
BOTH_VERDICT = "By the {title}, {first} is {verdict}."
NOT_COMPARED = "The representations are not compared: {why}"
NO_TABLES_TO_COMPARE = (
    "one of the runs has no embeddings.parquet; run `sureclr evaluate` on both first."
)
CKA = (
    "CKA is 1 where two representations are equal up to rotation and scale, and near 0 where they"
    " have nothing in common."
)
CKA_TILE = "over {n:,} images"
SPEARMAN_TILE = "Spearman's correlation over {n:,} images"
AGREEMENT_TILE = "share of {n:,} images for which both kNN votes name the same class"
OVERLAP_TILE = "share of an image's nearest images that both name; by chance {chance}"
CKA_BLOCKS = Caption(
    "Block by block",
    "Rows are the blocks of {first}, columns those of {second}; the numbers are their CKA. A strong"
    " diagonal means that both networks compute similar things at the same depth.",
)
